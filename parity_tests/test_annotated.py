"""The networks `annotated` and `annotated_convnext`: golden numbers of the post's code, settings, refused files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref.unets
import torch_ref.weights
from jax_ddpm import unets, weights
from jax_ddpm.spec.annotated_config import AnnotatedConfig
from jax_ddpm.spec.annotated_convnext_config import AnnotatedConvNextConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import NetworkConfig
from parity_tests import budgets
from parity_tests.golden_weights import golden_state_dict
from parity_tests.measures import compiled, relative
from parity_tests.test_golden import load

# The numbers are those of the post's code, computed in float64 from weights of `golden_weights`. Its frequencies are
# rounded to float32, and the epsilon of its convolutions is 1e-5, as they are in float32. In "annotated_divided", the
# code has * for / before rsqrt, and 7x7 kernels in the first convolution, as many copies of it.
GOLDEN = {
    "annotated": AnnotatedConfig(dim=8, dim_mults=(1, 2)),
    "annotated_divided": AnnotatedConfig(dim=8, dim_mults=(1, 2), init_kernel=7, kernel_scale="divided"),
    "annotated_convnext": AnnotatedConvNextConfig(dim=8, dim_mults=(1, 2)),
}


def errors(golden, y, x_grad, norms) -> list[float]:
    return [
        relative(ours, golden[name]) for name, ours in (("y", y), ("x_grad", x_grad), ("norms", list(norms.values())))
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers_of_the_twin(name):
    golden = load(name)
    network = torch_ref.unets.build(GOLDEN[name], 1)
    assert [key.partition(" ")[0] for key in golden["keys"]] == list(network.state_dict())  # in the post's order
    torch_ref.weights.load_state_dict(network, golden_state_dict(golden["keys"], {}), np.float64)
    x = torch.from_numpy(golden["x"]).requires_grad_()
    y = network(x, torch.from_numpy(golden["t"]))
    torch.mean(y**2).backward()
    norms = {key: value.grad.norm().item() for key, value in network.named_parameters()}
    assert max(errors(golden, y.detach(), x.grad, norms)) <= budgets.GOLDEN_NETWORK_FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name):
    golden = load(name)
    with jax.enable_x64(True):
        network = unets.build(GOLDEN[name], 1)
        weights.load_state_dict(network, golden_state_dict(golden["keys"], {}), np.float64)
        graph, params, buffers = nnx.split(network, nnx.Param, ...)

        def loss(params, x):
            y = nnx.merge(graph, params, buffers)(x, jnp.asarray(golden["t"]))
            return jnp.mean(y**2), y

        x = jnp.asarray(np.moveaxis(golden["x"], 1, -1))
        (grads, x_grad), y = compiled(jax.grad(loss, (0, 1), has_aux=True), quick=True)(params, x)
        grads = weights.state_dict(nnx.merge(graph, grads, buffers))
    norms = {key: np.linalg.norm(grads[key]) for key in (line.partition(" ")[0] for line in golden["keys"])}
    y, x_grad = (np.moveaxis(np.asarray(each), -1, 1) for each in (y, x_grad))
    assert max(errors(golden, y, x_grad, norms)) <= budgets.GOLDEN_NETWORK_FLOAT64


def values_of(config: NetworkConfig) -> dict[str, torch.Tensor]:
    network = torch_ref.unets.build(config, 1)
    torch_ref.weights.initialise(network, 3)
    return dict(network.state_dict())


def test_what_a_file_does_not_say_is_assumed_and_can_be_given(tmp_path):
    torch.save(values_of(GOLDEN["annotated_divided"]), tmp_path / "model.pth")
    lines = []
    model = torch_ref.load_model(tmp_path / "model.pth", log=lines.append)
    assert "resnet_block_groups=4, attn_heads=4, kernel_scale=multiplied" in lines[1]
    assert (model.info.diffusion.timesteps, model.info.diffusion.clip) == (300, "none")
    given = {"kernel_scale": "divided", "attn_heads": 2}
    network = torch_ref.load_model(tmp_path / "model.pth", network_settings=given, log=lines.append).info.network
    assert (network.kernel_scale, network.attn_heads, network.attn_width, network.init_kernel) == ("divided", 2, 128, 7)


def test_self_conditioning_is_refused(tmp_path):
    values = values_of(GOLDEN["annotated"])
    values["init_conv.weight"] = torch.cat([values["init_conv.weight"]] * 2, dim=1)
    torch.save(values, tmp_path / "model.pth")
    with pytest.raises(UserError, match="self_condition=True"):
        torch_ref.load_model(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 7},
        {"dim_mults": ()},
        {"init_kernel": 2},
        {"resnet_block_groups": 8},
        {"attn_heads": 0},
        {"attn_width": 6},
        {"kernel_scale": "added"},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        AnnotatedConfig(**settings).check()


@pytest.mark.parametrize(
    "settings", [{"dim": 2}, {"dim_mults": (2, 1)}, {"init_dim": 0}, {"convnext_mult": 0}, {"attn_width": 6}]
)
def test_wrong_settings_of_the_first_version_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        AnnotatedConvNextConfig(**settings).check()
