"""The reverse process against a plain NumPy loop, and what it promises about seeds, batches and memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm import rng, unets, weights
from jax_ddpm.sampling import samplers
from jax_ddpm.sampling.reverse import initial_carry, reverse_process, sampling_timesteps
from jax_ddpm.sampling.steps import ancestral_step, first_history
from jax_ddpm.schedules import make_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import ConvBlockConfig
from torch_ref.sampling import samplers as torch_samplers

SHAPE = (8, 8, 1)


def predict(x, t):
    return 0.3 * jnp.tanh(x) + 0.05 * jnp.sin(t.astype(x.dtype)).reshape(-1, 1, 1, 1)


def numpy_loop(objective, variance, clip, betas, x, noise):
    """Ho et al. 2020, Algorithm 2, written from the paper in NumPy, float64."""
    alphas = 1 - betas
    bars = np.cumprod(alphas)
    for t in range(len(betas) - 1, -1, -1):
        prediction = 0.3 * np.tanh(x) + 0.05 * np.sin(float(t))
        bar, previous = bars[t], bars[t - 1] if t else 1.0
        x_0 = {
            "eps": (x - np.sqrt(1 - bar) * prediction) / np.sqrt(bar),
            "x0": prediction,
            "v": np.sqrt(bar) * x - np.sqrt(1 - bar) * prediction,
        }[objective]
        if clip == "x0":
            x_0 = np.clip(x_0, -1, 1)
        mean = np.sqrt(previous) * betas[t] / (1 - bar) * x_0 + np.sqrt(alphas[t]) * (1 - previous) / (1 - bar) * x
        sigma2 = betas[t] if variance == "beta" else betas[t] * (1 - previous) / (1 - bar)
        x = mean + (np.sqrt(sigma2) * noise[t] if t else 0)
        if clip == "state":
            x = np.clip(x, -1, 1)
    return x


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("clip", ["x0", "state", "none"])
def test_reverse_process_is_algorithm_2(objective, variance, clip):
    with jax.enable_x64(True):
        tables = make_tables("linear", 30, 1e-3, 0.2, dtype=np.float64)
        noise = np.random.default_rng(1).standard_normal((31, 2, 3, 3, 1))
        config = DiffusionConfig(objective=objective, variance=variance, clip=clip)
        step = partial(ancestral_step, tables, config)
        device_noise = jnp.asarray(noise)
        x_0, _ = reverse_process(step, predict, device_noise[30], 30, lambda t: device_noise[t])
        expected = numpy_loop(objective, variance, clip, tables.betas, noise[30], noise)
    np.testing.assert_allclose(x_0, expected, rtol=0, atol=1e-10 * max(1, np.abs(expected).max()))


@pytest.fixture(scope="module")
def network():
    network = unets.build(ConvBlockConfig(widths=(32,), time_width=32))
    weights.initialise(network, 5)
    return network


CONFIG = DiffusionConfig(timesteps=25, beta_end=0.3)


def test_a_picture_does_not_depend_on_its_batch(network):
    alone, _ = samplers.sample_indices(network, CONFIG, SHAPE, 7, [6])
    among, _ = samplers.sample_indices(network, CONFIG, SHAPE, 7, [2, 6, 9, 4, 0])
    np.testing.assert_allclose(alone[0], among[1], rtol=0, atol=1e-5)
    assert np.abs(np.asarray(among[0]) - np.asarray(among[1])).max() > 0.1
    batched = samplers.sample(network, 7, 7, batch_size=3, config=CONFIG, image_shape=SHAPE)
    np.testing.assert_allclose(batched[6], alone[0], rtol=0, atol=1e-5)
    assert batched.shape == (7, *SHAPE)


def test_a_batch_that_memory_does_not_hold_is_halved():
    """In either framework, at whatever batch that happens; other errors and single images that are too much go on."""
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    def draw(indices, fits, error, module=np):
        if len(indices) > (fits if indices[0] else 8):
            raise error
        return module.asarray(np.broadcast_to(indices[:, None, None, None], (len(indices), 1, 1, 1)).astype(np.float32))

    for sample_in_batches, error, module in (
        (samplers.sample_in_batches, full, np),
        (torch_samplers.sample_in_batches, torch.OutOfMemoryError(), torch),
    ):
        with pytest.warns(UserWarning, match="not enough memory for 8 images at a time: continuing with 4"):
            drawn = sample_in_batches(partial(draw, fits=3, error=error, module=module), 21, 8)
        np.testing.assert_array_equal(drawn.ravel(), np.arange(21))
        with pytest.raises(type(error)), pytest.warns(UserWarning, match="continuing with 1"):
            sample_in_batches(partial(draw, fits=0, error=error, module=module), 21, 8)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        samplers.sample_in_batches(partial(draw, fits=3, error=jax.errors.JaxRuntimeError("INTERNAL: no")), 21, 8)


def test_every_draw_has_its_address(network):
    x_T = rng.normal(rng.key(7, rng.SAMPLING, 6, 25), SHAPE)
    _, frames = samplers.sample_indices(network, CONFIG, SHAPE, 7, [3, 6], num_frames=2)
    np.testing.assert_array_equal(frames[0, 1], x_T)


def test_frames_are_the_asked_for_states(network):
    x_0, every = samplers.sample_indices(network, CONFIG, SHAPE, 1, [0, 1], num_frames=26)
    same, some = samplers.sample_indices(network, CONFIG, SHAPE, 1, [0, 1], num_frames=6)
    none_asked, none = samplers.sample_indices(network, CONFIG, SHAPE, 1, [0, 1])
    assert none.shape[0] == 0 and some.shape == (6, 2, *SHAPE)
    np.testing.assert_array_equal(some, every[::5])
    np.testing.assert_array_equal(every[-1], x_0)
    np.testing.assert_allclose(x_0, same, rtol=0, atol=1e-6)
    np.testing.assert_allclose(x_0, none_asked, rtol=0, atol=1e-6)


def test_progress_is_told(network):
    told = []
    samplers.sample_indices(network, CONFIG, SHAPE, 1, [0], progress=lambda done: told.append(int(done)))
    assert told == list(range(1, 26))


@pytest.mark.parametrize(("sampler", "timesteps"), [("ddpm", 150), ("dpmpp", 150), ("dpmpp", 151)])
def test_parts_are_the_whole(network, sampler, timesteps):
    """And all parts of three steps are one compiled program; what remains of the chain is one more."""
    settings = {"sampler": SamplerConfig(sampler), "num_frames": 3}
    config = DiffusionConfig(timesteps=timesteps, beta_end=0.1)
    whole = samplers.sample_indices(network, config, SHAPE, 1, [0, 1], **settings)
    compiled, told = samplers._sample._cache_size(), []
    parts = samplers.sample_indices(network, config, SHAPE, 1, [0, 1], **settings, progress=told.append)
    assert told == list(range(3, 151, 3))
    assert samplers._sample._cache_size() == compiled + 1 + (timesteps % 3 > 0)
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp", "heun"])
def test_memory_does_not_grow_with_the_steps(network, sampler):
    from flax import nnx

    graph, state = nnx.split((network, None, None))
    keys = jax.vmap(lambda i: jax.random.fold_in(rng.key(0, rng.SAMPLING), i))(jnp.arange(4))

    def temporary(steps):
        config, settings = DiffusionConfig(beta_end=0.01), SamplerConfig(sampler, steps)
        x_T = jnp.zeros((4, *SHAPE))
        history = first_history(x_T) if sampler == "dpmpp" else None
        carry = initial_carry(x_T, sampling_timesteps(config, settings), 0, history)
        lowered = samplers._sample.lower(graph, state, keys, None, *carry, config, settings, jnp.dtype("float32"))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(10), temporary(1000)
    assert many - few < 1000 * 4 * 64, "a state is kept for every step"  # one state: 4 images of 64 float32


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**32}])
def test_wrong_counts_and_seeds_are_refused(network, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        samplers.sample(network, **wrong, config=CONFIG, image_shape=SHAPE)
