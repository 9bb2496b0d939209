"""jax_ddpm against the golden numbers of the programs that it reimplements."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jax_ddpm import diffusion, unets, weights
from jax_ddpm.embeddings import geometric_frequencies, interleaved_embedding
from jax_ddpm.sampling.reverse import reverse_process
from jax_ddpm.sampling.steps import ancestral_step
from jax_ddpm.schedules import make_tables, schedule_tables
from jax_ddpm.spec.annotated_config import AnnotatedConfig
from jax_ddpm.spec.annotated_convnext_config import AnnotatedConvNextConfig
from jax_ddpm.spec.context_unet_config import ContextUNetConfig
from jax_ddpm.spec.ddpm_conditional_config import DDPMConditionalConfig
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig
from jax_ddpm.spec.network_config import AttentionConfig, ConvBlockConfig, DDPMConfig, LayerNormConfig, StridedConfig
from jax_ddpm.spec.simple_unet_config import SimpleUNetConfig
from jax_ddpm.spec.superminddpm_config import SuperMinDDPMConfig
from parity_tests import budgets
from parity_tests.golden_weights import GOLDEN, golden_state_dict
from parity_tests.measures import compiled


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def channels_last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


@pytest.mark.parametrize(("beta_start", "name"), [(1e-4, "1e-4"), (1e-5, "1e-5")])
def test_schedule(beta_start, name):
    golden, tables = load(f"schedule_linear_{name}_0.02"), make_tables("linear", 1000, beta_start, 0.02)
    ours = {
        "betas": tables.betas,
        "alphas": tables.alphas,
        "alphas_cumprod": tables.alpha_bars,
        "alphas_cumprod_prev": tables.alpha_bars_prev,
        "sqrt_recip_alphas": 1 / np.sqrt(tables.alphas),
    }
    for key in set(ours) & set(golden):
        np.testing.assert_allclose(ours[key], golden[key], rtol=budgets.GOLDEN_SCHEDULE, atol=0, err_msg=key)
    variance = golden["variance" if "variance" in golden else "posterior_variance"]
    np.testing.assert_allclose(tables.posterior_variance[1:], variance[1:], rtol=budgets.GOLDEN_POSTERIOR[name], atol=0)
    assert tables.posterior_variance[0] == 0


def test_noising():
    golden = load("noising")
    x_t = diffusion.q_sample(
        make_tables(), channels_last(golden["x0"]), jnp.asarray(golden["t"]), channels_last(golden["noise"])
    )
    np.testing.assert_allclose(x_t, channels_last(golden["xt"]), rtol=0, atol=budgets.GOLDEN_NOISING)


@pytest.mark.parametrize("width", [10, 256])
def test_interleaved_embedding(width):
    golden = load("embeddings")
    ours = interleaved_embedding(jnp.asarray(golden["t"]), jnp.asarray(geometric_frequencies(width)))
    np.testing.assert_allclose(ours, golden[f"interleaved_d{width}"], rtol=0, atol=budgets.GOLDEN_EMBEDDING)


def test_interleaved_embedding_known_values():
    known = [-0.5064, 0.8623, -0.1405, -0.9901, 0.5889, -0.8082, 0.3877, 0.9218, 0.0631, 0.9980]
    ours = interleaved_embedding(jnp.asarray([100]), jnp.asarray(geometric_frequencies(10)))
    np.testing.assert_allclose(ours[0], known, rtol=0, atol=5.1e-5)


def torch_table():
    """layer_norm's table as the reference computed it: with torch's float32 sines, a last bit off in 4% of them."""
    phase = torch.arange(1000, dtype=torch.float32)[:, None] * torch.tensor((1e4 ** (-np.arange(50) / 25)).tolist())
    return torch.stack([torch.sin(phase), torch.cos(phase)], dim=-1).reshape(1000, 100).numpy()


# The configuration of each file, and what the network computes for itself.
GOLDEN_NETWORKS = {
    "conv_block": (ConvBlockConfig(widths=(32, 64, 128), time_width=32), {"time_emb.0.J": geometric_frequencies(32)}),
    "strided": (StridedConfig(), {}),
    "attention": (AttentionConfig(channels=32, multipliers=(1, 2), attention=(False, True), blocks=1), {}),
    "layer_norm": (LayerNormConfig(), {"time_embed.weight": torch_table()}),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("conv_block", np.float64)]
    + [pytest.param(name, np.float64, marks=pytest.mark.slow) for name in GOLDEN_NETWORKS if name != "conv_block"]
    + [(name, np.float32) for name in GOLDEN_NETWORKS],
)
def test_network(name, dtype):
    golden, (config, computed) = load(name), GOLDEN_NETWORKS[name]
    with jax.enable_x64(dtype == np.float64):
        network = unets.build(config, golden["x"].shape[1])
        weights.load_state_dict(network, golden_state_dict(golden["keys"], computed), dtype)
        x, t = jnp.asarray(channels_last(golden["x"]).astype(dtype)), jnp.asarray(golden["t"])

        graph, state = nnx.split(network)

        def outputs(state, x):
            network = nnx.merge(graph, state)
            (loss, y), x_grad = jax.value_and_grad(lambda x: (jnp.mean((y := network(x, t)) ** 2), y), has_aux=True)(x)
            return y, x_grad, loss

        ours = compiled(outputs, quick=True)(state, x)
    theirs = channels_last(golden["y"]), channels_last(golden["x_grad"]), golden["loss"]
    assert ours[0].dtype == dtype
    budget = budgets.GOLDEN_NETWORK_FLOAT64 if dtype == np.float64 else budgets.GOLDEN_NETWORK_FLOAT32[name]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=budget * np.abs(b).max())


@pytest.mark.parametrize(
    ("config", "channels", "count"),
    [
        (ConvBlockConfig(), 1, 33_260_417),
        (StridedConfig(), 3, 4_544_323),
        (AttentionConfig(), 1, 173_082_049),
        (LayerNormConfig(), 1, 506_852),
        (DDPMConfig(), 3, 35_746_307),
        (SimpleUNetConfig(), 3, 62_438_883),
        (ContextUNetConfig(), 1, 6_585_601),
        (LucidrainsConfig(), 3, 35_711_491),
        (SuperMinDDPMConfig(), 1, 16_867_073),
        (AnnotatedConfig(), 1, 2_020_257),
        (AnnotatedConvNextConfig(), 1, 2_996_315),
        (DDPMConditionalConfig(), 3, 23_332_739),
        (DDPMConditionalConfig(num_classes=10), 3, 23_335_299),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_parameters_at_full_size(config, channels, count):
    entries = weights.torch_arrays(unets.build(config, channels))
    assert sum(np.prod(e.shape) for e in entries if isinstance(e.variable, nnx.Param)) == count


REVERSE = {
    "reverse_beta_clamped": (1e-4, "beta", "state"),
    "reverse_beta_unclamped": (1e-4, "beta", "none"),
    "reverse_posterior_clamped": (1e-5, "posterior", "state"),
}


@pytest.mark.parametrize("name", REVERSE)
def test_reverse_process(name):
    golden = load(name)
    beta_start, variance, clip = REVERSE[name]
    noise = jnp.asarray(
        np.stack(
            [np.random.default_rng([7, k]).standard_normal((2, 1, 4, 4)).astype(np.float32) for k in range(1001)]
        ).transpose(0, 1, 3, 4, 2)
    )

    def predict(x, t):
        return 0.5 * jnp.tanh(x) + 0.1 * jnp.cos(0.01 * t.astype(jnp.float32)).reshape(-1, 1, 1, 1)

    config = DiffusionConfig(beta_start=beta_start, variance=variance, clip=clip)
    step = partial(ancestral_step, schedule_tables(config), config)
    # Frame k is the state after k steps, so that the state after the step from t is frame 1000 - t.
    x_0, frames = jax.jit(
        lambda: reverse_process(step, predict, noise[0], 1000, lambda t: noise[1000 - t], num_frames=1001)
    )()
    if "x_final_01" in golden:
        pairs = [((x_0 + 1) / 2, golden["x_final_01"])]
    else:
        pairs = [(frames[1000 - int(key.rpartition("_")[2])], value) for key, value in golden.items()]
        assert len(pairs) == 9
    for ours, theirs in pairs:
        theirs = channels_last(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=budgets.GOLDEN_REVERSE * max(1, np.abs(theirs).max()))
