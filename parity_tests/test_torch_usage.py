"""torch_ref's networks as users of PyTorch use modules: autocast, other dtypes and devices, compile, export, copies."""

import copy
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_ddpm
import torch_ref.unets
import torch_ref.weights
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import ConvBlockConfig
from parity_tests import budgets
from parity_tests.measures import random, twin
from parity_tests.networks import CASES, Case

torch.set_num_threads(1)
NETWORKS = pytest.mark.parametrize("name", CASES)
SMALL = Case(ConvBlockConfig(widths=(32,), time_width=8), 1, 4)
QUICK_ONE_ONLY = pytest.mark.parametrize("name", ["small", *(pytest.param(n, marks=pytest.mark.slow) for n in CASES)])


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def network_and_inputs(name, dtype=np.float32):
    """A network in eval mode; x and t of three images, among them the t that bfloat16 rounds: 998 becomes 1000."""
    case = CASES.get(name, SMALL)
    network = twin(random(case.config, case.channels)(), case.config, case.channels, dtype).eval()
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((3, case.channels, case.size, case.size)))
    return network, x.to(next(network.parameters()).dtype), torch.tensor([998, 3, 1])


def error(y, exact) -> float:
    """The largest difference, as a share of the largest output."""
    return float((y.double() - exact.double()).abs().max() / exact.abs().max())


@NETWORKS
def test_autocast(name):
    """Around a network, autocast does what the dtype bfloat16 of `build` does."""
    network, x, t = network_and_inputs(name)
    exact, network.dtype = network(x, t), torch.bfloat16
    built = network(x, t)
    network.dtype = None
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x, t)
    assert y.dtype == torch.float32 and torch.equal(y, built)
    assert 0 < error(y, exact) < budgets.BFLOAT16


@NETWORKS
def test_one_timestep_for_all_images(name):
    network, x, _ = network_and_inputs(name)
    expected = network(x, torch.tensor([7, 7, 7]))
    for t in (7, np.int64(7), torch.tensor(7), torch.tensor([7]), torch.tensor(7, dtype=torch.uint8), [7, 7, 7]):
        assert torch.equal(network(x, t), expected)


@pytest.mark.parametrize("t", [7.0, True, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2]), torch.ones(3, 1).long()])
def test_other_timesteps_are_refused(t):
    network, x, _ = network_and_inputs("conv_block")
    with pytest.raises(UserError, match=r"t has the (dtype|shape) .*: expected"):
        network(x, t)


@NETWORKS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(name, dtype):
    """Half precision rounds activations, not t or its frequencies; float64 gives what a float64 network gives."""
    network, x, t = network_and_inputs(name)
    exact = network(x, t)
    network.to(dtype)
    for inputs in (x, x.to(dtype)):
        y = network(inputs, t)
        assert y.dtype == dtype
        assert error(y, exact) < (budgets.USAGE_FLOAT32 if dtype == torch.float64 else budgets.BFLOAT16)
    if dtype == torch.float64:
        double, x, t = network_and_inputs(name, np.float64)
        assert torch.equal(network(x, t), double(x, t))
    elif CASES[name].config.uses_time:
        assert not torch.equal(network(x, 998), network(x, 999))  # both are 1000 in bfloat16


@pytest.mark.parametrize("name", ["conv_block", "attention", "ddpm"])
def test_frequencies_survive_half_precision(name):
    network, _, _ = network_and_inputs(name)
    before = {key: buffer.clone() for key, buffer in network.named_buffers()}
    assert before
    for key, buffer in network.half().named_buffers():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, before[key])


@NETWORKS
def test_devices(name):
    """Parameters and buffers move, and a network without numbers says which shape it gives."""
    network, x, t = network_and_inputs(name)
    network.to("meta")
    assert {value.device.type for value in [*network.parameters(), *network.buffers()]} == {"meta"}
    assert network(x.to("meta"), t).shape == x.shape


@NETWORKS
def test_copies_and_state_dicts(name):
    network, x, t = network_and_inputs(name)
    twice = copy.deepcopy(network)
    other = torch_ref.unets.build(CASES[name].config, CASES[name].channels)
    other.load_state_dict(twice.state_dict(), strict=True)
    for again in (twice, other.eval()):
        assert torch.equal(again(x, t), network(x, t))


@QUICK_ONE_ONLY
def test_compiling_needs_no_break(name):
    """Captured as one graph, with t as a tensor and as an integer, in autocast too."""
    network, x, t = network_and_inputs(name)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for timesteps in (t, 5):
        assert error(compiled(x, timesteps), network(x, timesteps)) <= budgets.USAGE_FLOAT32
    with torch.autocast("cpu", torch.bfloat16):
        assert error(compiled(x, t), network(x, t)) <= budgets.BFLOAT16


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@NETWORKS
def test_compiled_code(name):
    network, x, t = network_and_inputs(name)
    assert error(torch.compile(network, fullgraph=True)(x, t), network(x, t)) <= budgets.USAGE_FLOAT32


@QUICK_ONE_ONLY
def test_export_with_any_batch_size(name):
    network, x, t = network_and_inputs(name)
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(network, (x, t), dynamic_shapes={"x": batch, "t": batch}).module()
    for count in (2, 3, 5):
        inputs = torch.cat([x, x])[:count], torch.arange(count)
        assert error(exported(*inputs), network(*inputs)) <= budgets.USAGE_FLOAT32


def test_a_model_of_jax_ddpm_takes_one_timestep_too():
    info = ModelInfo(network=SMALL.config, image_shape=(4, 4, 1), diffusion=DiffusionConfig())
    model = jax_ddpm.Model(lambda x, t: x * t[:, None, None, None], info)
    x = np.random.default_rng(1).standard_normal((2, 4, 4, 1)).astype(np.float32)
    for t in (7, np.int64(7), jnp.int32(7), [7], np.array([7, 7])):
        np.testing.assert_array_equal(np.asarray(model(x, t)), 7 * x)
    for t, named in ((7.0, "dtype of t = float"), (True, "dtype of t = bool"), ([1, 2, 3], "shape of t = .3,.")):
        with pytest.raises(UserError, match=f"{named}.*: expected"):
            model(x, t)


class OwnNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x, t):
        return self.layer(x)


@pytest.mark.parametrize("make", [lambda n: torch_ref.unets.with_autocast(n, torch.bfloat16), torch_ref.unets.in_tf32])
def test_a_copy_computes_with_its_own_weights(make):
    """Such as the EMA of a network of the user's own in bfloat16."""
    network = make(OwnNetwork())
    average = copy.deepcopy(network)
    torch.nn.init.zeros_(average.layer.weight)
    torch.nn.init.zeros_(average.layer.bias)
    x = torch.ones(2, 4)
    assert average(x, 0).abs().max() == 0 and network(x, 0).abs().max() > 0 and network(x, 0).dtype == torch.float32


def test_tf32_in_torch_compile():
    network = torch_ref.unets.build_in("tf32", SMALL.config)
    torch_ref.weights.initialise(network, 0)
    x, t = torch.ones(1, 1, 4, 4), torch.tensor([3])
    compiled = torch.compile(network.eval(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, t), network(x, t))
