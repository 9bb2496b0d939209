"""What a model does with given images and seeds besides `inpainting`: interpolate, invert and reconstruct, img2img.

Images are floats (N, H, W, C) in [-1, 1], in and out. `model`, `config`, `seeds`, `progress` and `dtype` are those of
`samplers.sample`; picture i has the noise of picture i of the seed. Wrong shapes and settings raise UserError.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import diffusion
from jax_ddpm.arrays import Array
from jax_ddpm.sampling.reverse import initial_carry, run_with_progress, sampling_timesteps, scan_steps
from jax_ddpm.sampling.samplers import (
    ANCESTRAL,
    image_keys,
    noise_at,
    sample,
    sample_in_batches,
    shard,
    unpack_model,
)
from jax_ddpm.sampling.steps import ddim_inverse_step
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.inputs import check_draws_no_noise, check_images, check_invertible, seeds_and_indices
from jax_ddpm.spec.spacing import next_timesteps

DDIM = SamplerConfig("ddim")  # all T steps


def slerp(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """On the arc from a to b, seen as vectors: sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b.

    Shoemake 1985. weights: (N,) in [0, 1]. Returns (N, *a.shape). The straight line where a and b are nearly parallel.
    """
    theta = np.arccos(np.clip(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    shares = np.stack([1 - weights, weights])
    if np.sin(theta) > 1e-3:
        shares = np.sin(shares * theta) / np.sin(theta)
    return np.tensordot(shares.T.astype(a.dtype), np.stack([a, b]), 1)


def interpolate(
    model,
    seed_a: int,
    seed_b: int,
    num_images: int = 16,
    batch_size: int = 64,
    *,
    sampler: SamplerConfig = DDIM,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype=jnp.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """From picture 0 of one seed to that of another in even steps along the arc between their x_T: (N, H, W, C).

    Song et al. 2021, section 5.3. Takes a sampler that draws no noise; the ends are the pictures of the seeds.
    """
    check_draws_no_noise(sampler)
    require(num_images >= 2, "num_images", num_images, "expected at least 2, the ends")
    _, config, shape = unpack_model(model, config, image_shape)
    config.check()
    a, b = np.asarray(noise_at(image_keys([seed_a, seed_b], [0, 0]), config.timesteps, tuple(shape), dtype))
    x_T = np.stack([a, *slerp(a, b, np.linspace(0, 1, num_images)[1:-1]), b])
    settings = {"sampler": sampler, "config": config, "image_shape": shape, "dtype": dtype, "progress": progress}
    return sample(model, batch_size=batch_size, x_T=x_T, **settings)


@partial(jax.jit, static_argnames=("graph", "config", "sampler"))
def _invert(graph, state, carry, xs, config, sampler):
    network, chain = nnx.merge(graph, state), sampling_timesteps(config, sampler)
    tables = schedule_tables(config, carry[0].dtype, chain)
    next_t = jnp.asarray(np.maximum(next_timesteps(chain, config.timesteps), chain[-1]))

    def eps_below(x, t):
        prediction, _ = diffusion.split_prediction(network(x, next_t[t]), x)
        return diffusion.predicted_eps(tables, config.objective, x, next_t[t], prediction)

    return scan_steps(partial(ddim_inverse_step, tables), eps_below, lambda t: None, carry, xs)


def invert(
    model,
    images: Array,
    batch_size: int = 64,
    *,
    sampler: SamplerConfig = DDIM,
    config: DiffusionConfig | None = None,
    dtype=jnp.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """The x_T from which DDIM draws the images: its ODE from image to noise, Song et al. 2021, section 4.3.

    The more steps, the nearer to the images comes what `reconstruct` makes of it with the same sampler. A step up to t
    takes eps from the state at the chain's next timestep below; the first one from the images, as if they were at the
    chain's last timestep, which is where the last step down takes it. Nothing is clipped. Takes "ddim" with eta = 0.
    """
    network, config, image_shape = unpack_model(model, config, None)
    images = check_images("images", images, image_shape, dtype)
    config.check()
    sampler.check(config.timesteps)
    check_invertible(sampler)

    def draw(indices):
        graph, state, x_0 = shard(network, images[indices])
        carry, xs = initial_carry(jnp.asarray(x_0), sampling_timesteps(config, sampler)[::-1])

        def run(carry, xs):
            return _invert(graph, state, carry, xs, config, sampler)

        return run_with_progress(run, carry, xs, progress)[0]

    return sample_in_batches(draw, len(images), batch_size)


def reconstruct(
    model,
    x_T: Array,
    batch_size: int = 64,
    *,
    sampler: SamplerConfig = DDIM,
    config: DiffusionConfig | None = None,
    dtype=jnp.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """The images again from what `invert` made of them: `sample` from x_T without clipping, which would not invert."""
    _, config, _ = unpack_model(model, config, None)
    settings = {"config": replace(config, clip="none"), "image_shape": np.shape(x_T)[1:], "dtype": dtype}
    return sample(model, batch_size=batch_size, x_T=x_T, sampler=sampler, **settings, progress=progress)


def img2img(
    model,
    images: Array,
    start_t: int,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    sampler: SamplerConfig = ANCESTRAL,
    config: DiffusionConfig | None = None,
    dtype=jnp.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """Images noised to start_t, and sampled from there: SDEdit, Meng et al. 2022, section 3. Any sampler.

    start_t: in [0, T); the larger, the more is drawn anew. The chain begins at its first timestep that is at most
    start_t, and that is the time the images are noised to. Their noise is what would be x_T, at (SAMPLING, i, T).
    """
    _, config, image_shape = unpack_model(model, config, None)
    images = check_images("images", images, image_shape, dtype)
    config.check()
    sampler.check(config.timesteps)
    keys = image_keys(*seeds_and_indices(seed, seeds, len(images)))
    noise = noise_at(keys, config.timesteps, images.shape[1:], dtype)
    t = np.full(len(images), sampling_timesteps(config, sampler, start_t)[0])
    x_t = diffusion.q_sample(schedule_tables(config, images.dtype), images, t, noise)
    start = {"x_T": x_t, "start_t": start_t, "seeds": seeds, "image_shape": images.shape[1:]}
    return sample(
        model, len(images), seed, batch_size, **start, sampler=sampler, config=config, dtype=dtype, progress=progress
    )
