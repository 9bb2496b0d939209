"""jax_ddpm against the golden numbers of the programs that it reimplements."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm import diffusion, samplers, unets, weights
from jax_ddpm.embeddings import interleaved, interleaved_frequencies
from jax_ddpm.network_config import ConvBlockConfig
from jax_ddpm.schedules import make_tables
from parity_tests import budgets
from parity_tests.golden_weights import GOLDEN, golden_state_dict


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
    ours = interleaved(jnp.asarray(golden["t"]), jnp.asarray(interleaved_frequencies(width)))
    np.testing.assert_allclose(ours, golden[f"interleaved_d{width}"], rtol=0, atol=budgets.GOLDEN_EMBEDDING)


def test_interleaved_embedding_known_values():
    known = [-0.5064, 0.8623, -0.1405, -0.9901, 0.5889, -0.8082, 0.3877, 0.9218, 0.0631, 0.9980]
    ours = interleaved(jnp.asarray([100]), jnp.asarray(interleaved_frequencies(10)))
    np.testing.assert_allclose(ours[0], known, rtol=0, atol=5.1e-5)


def conv_block_state_dict():
    return golden_state_dict(load("conv_block")["keys"], {"time_emb.0.J": interleaved_frequencies(32)})


def conv_block(dtype):
    network = unets.build(ConvBlockConfig(widths=(32, 64, 128), time_width=32))
    weights.load_state_dict(network, conv_block_state_dict(), dtype)
    return network


@pytest.mark.parametrize(
    ("dtype", "budget"),
    [(np.float64, budgets.GOLDEN_NETWORK_FLOAT64), (np.float32, budgets.GOLDEN_NETWORK_FLOAT32)],
)
def test_conv_block(dtype, budget):
    golden = load("conv_block")
    with jax.enable_x64(dtype == np.float64):
        network, t = conv_block(dtype), jnp.asarray(golden["t"])
        x = jnp.asarray(channels_last(golden["x"]).astype(dtype))
        y = network(x, t)
        loss, x_grad = jax.value_and_grad(lambda x: jnp.mean(network(x, t) ** 2))(x)
    assert y.dtype == dtype
    for ours, theirs in (
        (y, channels_last(golden["y"])),
        (x_grad, channels_last(golden["x_grad"])),
        (loss, golden["loss"]),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=budget * np.abs(theirs).max())


def test_conv_block_full_size():
    network = unets.build(ConvBlockConfig())
    assert sum(np.prod(e.shape) for e in weights.entries(network) if not e.name.endswith(".J")) == 33_260_417


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

    step = partial(samplers.ancestral_step, make_tables("linear", 1000, beta_start, 0.02), variance=variance, clip=clip)
    # Frame k is the state after k steps, so that the state after the step from t is frame 1000 - t.
    x_0, frames = jax.jit(
        lambda: samplers.reverse_process(step, predict, noise[0], 1000, lambda t: noise[1000 - t], num_frames=1001)
    )()
    if "x_final_01" in golden:
        pairs = [((x_0 + 1) / 2, golden["x_final_01"])]
    else:
        pairs = [(frames[1000 - int(key.rpartition("_")[2])], value) for key, value in golden.items()]
        assert len(pairs) == 9
    for ours, theirs in pairs:
        theirs = channels_last(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=budgets.GOLDEN_REVERSE * max(1, np.abs(theirs).max()))
