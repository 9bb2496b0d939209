"""Inpainting: draw the unknown pixels of images so that they fit the known ones (RePaint, Lugmayr et al. 2022)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import diffusion, rng
from jax_ddpm.arrays import Array
from jax_ddpm.sampling.reverse import initial_carry, make_step, run_with_progress, sampling_timesteps, scan_steps
from jax_ddpm.sampling.samplers import (
    ANCESTRAL,
    compiled_noise_at,
    image_keys,
    noise_at,
    sample_in_batches,
    shard,
    unpack_model,
)
from jax_ddpm.schedules import Tables, schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.inputs import check_ancestral, check_images, check_mask, seeds_and_indices
from jax_ddpm.spec.spacing import repaint_schedule


def jump_alpha_ratios(tables: Tables, timesteps: np.ndarray) -> np.ndarray:
    """After each step, alpha_bar of the next timestep over the alpha_bar reached: below 1 where a jump lies between."""
    following = np.append(timesteps[1:], -1)
    return np.where(following >= timesteps, tables.alpha_bars[following] / tables.alpha_bars_prev[timesteps], 1.0)


@partial(jax.jit, static_argnames=("graph", "config", "sampler", "resamplings", "jump"))
def _inpaint(graph, state, images, keys, known_keys, jump_keys, mask, carry, xs, config, sampler, resamplings, jump):
    network, chain = nnx.merge(graph, state), sampling_timesteps(config, sampler)
    tables = schedule_tables(config, images.dtype, chain)
    timesteps, visits = repaint_schedule(chain, resamplings, jump)
    kept = jump_alpha_ratios(schedule_tables(config, np.float64, chain), timesteps)
    kept, renewed = (jnp.asarray(np.sqrt(share), images.dtype) for share in (kept, 1 - kept))
    places, ts = jnp.asarray(timesteps + visits * (config.timesteps + 1)), jnp.asarray(timesteps)
    ancestral_step = make_step(tables, config, sampler, chain, network)

    def draw_noise(n):
        return tuple(noise_at(k, places[n], images.shape[1:], images.dtype) for k in (keys, known_keys))

    def step(x_t, prediction, n, noise):
        t = jnp.full((x_t.shape[0],), ts[n])
        root, rest = tables.sqrt_alpha_bars_prev, tables.sqrt_one_minus_alpha_bars_prev
        known = diffusion.extract(root, t) * images + diffusion.extract(rest, t) * noise[1]  # Algorithm 1, line 5
        x = jnp.where(mask, known, ancestral_step(x_t, prediction, ts[n], noise[0]))  # lines 7 and 8

        def jumped():
            return kept[n] * x + renewed[n] * noise_at(jump_keys, places[n], x.shape[1:], x.dtype)  # line 10

        return jax.lax.cond(kept[n] < 1, jumped, lambda: x)

    return scan_steps(step, lambda x, n: network(x, ts[n]), draw_noise, carry, xs)


def inpaint(
    model,
    images: Array,
    mask: np.ndarray,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    resamplings: int = 10,
    jump: int = 10,
    sampler: SamplerConfig = ANCESTRAL,
    config: DiffusionConfig | None = None,
    dtype=jnp.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """Images with all but their known pixels drawn anew: RePaint, Lugmayr et al. 2022, Algorithm 1.

    mask: (H, W), other than 0 where a pixel is known, which it then is in the result, bit for bit. Takes ancestral
    steps over any chain, and about `resamplings` times as many network calls as the chain is long: the length of
    `repaint_schedule(chain, resamplings, jump)`. All draws are new at each visit of a timestep (`rng.py`); with nothing
    known and resamplings = 1 the pictures are those of `sample`.
    """
    network, config, image_shape = unpack_model(model, config, None)
    images = check_images("images", images, image_shape, dtype)
    known = jnp.asarray(check_mask(mask, images))[..., None]
    config.check()
    sampler.check(config.timesteps)
    check_ancestral(sampler)
    steps = len(repaint_schedule(sampling_timesteps(config, sampler), resamplings, jump)[0])
    of = seeds_and_indices(seed, seeds, len(images))
    keys = [image_keys(*of, purpose) for purpose in (rng.SAMPLING, rng.KNOWN, rng.JUMP)]

    def draw(indices):
        arrays = shard(network, images[indices], *(k[indices] for k in keys))
        _, _, _, picture_key, *_ = arrays
        x_T = compiled_noise_at(picture_key, config.timesteps, tuple(images.shape[1:]), images.dtype)
        carry, xs = initial_carry(x_T, np.arange(steps))

        def run(carry, xs):
            return _inpaint(*arrays, known, carry, xs, config, sampler, resamplings, jump)

        return run_with_progress(run, carry, xs, progress)[0]

    return sample_in_batches(draw, len(images), batch_size)
