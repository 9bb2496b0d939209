"""Inpainting: draw the unknown pixels of images so that they fit the known ones."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import diffusion, rng
from jax_ddpm.arrays import Array
from jax_ddpm.layers import cast_once
from jax_ddpm.sampling.guidance import guided_predict, self_conditioned
from jax_ddpm.sampling.reverse import initial_carry, make_step, run_with_progress, sampling_timesteps, scan_steps
from jax_ddpm.sampling.samplers import (
    ANCESTRAL,
    compiled_noise_at,
    image_keys,
    labels_and_guide,
    noise_at,
    opened,
    sample_in_batches,
    shard,
    unless_given,
    unpack_model,
)
from jax_ddpm.sampling.steps import initial_history
from jax_ddpm.schedules import Tables, schedule_tables
from jax_ddpm.spec.data_range import USUAL, from_data_range, to_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, require_timesteps
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.inputs import check_ancestral, check_images, check_mask, seeds_and_indices
from jax_ddpm.spec.spacing import repaint_schedule


def jump_alpha_ratios(tables: Tables, timesteps: np.ndarray) -> np.ndarray:
    """For each step that a jump up follows: alpha_bar after the jump, divided by alpha_bar before it. For others, 1.

    The jump multiplies the signal by the square root of this ratio, which is below 1.
    """
    following = np.append(timesteps[1:], -1)
    return np.where(following >= timesteps, tables.alpha_bars[following] / tables.alpha_bars_prev[timesteps], 1.0)


@partial(jax.jit, static_argnames=("graph", "config", "sampler", "resamplings", "jump"))
def _inpaint(graph, state, images, keys, labels, mask, carry, xs, config, sampler, resamplings, jump):
    network, guide = nnx.merge(graph, state)
    chain, predict = sampling_timesteps(config, sampler), guided_predict(network, config, sampler, labels, guide)
    sampling_keys, known_keys, jump_keys = keys
    tables = schedule_tables(config, images.dtype, chain)
    timesteps, visits = repaint_schedule(chain, resamplings, jump)
    ratios = jump_alpha_ratios(schedule_tables(config, np.float64, chain), timesteps)
    signal_scale, noise_scale = (jnp.asarray(np.sqrt(ratio), images.dtype) for ratio in (ratios, 1 - ratios))
    noise_index, ts = jnp.asarray(timesteps + visits * (config.timesteps + 1)), jnp.asarray(timesteps)
    self_condition = self_conditioned(network, guide)
    ancestral_step = make_step(tables, config, sampler, chain, predict, self_condition)

    def draw(keys, n):
        return noise_at(keys, noise_index[n], images.shape[1:], images.dtype)

    def draw_noise(n):
        return draw(sampling_keys, n), draw(known_keys, n)

    def step(x_t, prediction, n, noise, *history):
        t = jnp.full((x_t.shape[0],), ts[n])
        known = diffusion.extract(tables.sqrt_alpha_bars_prev, t) * images
        known = known + diffusion.extract(tables.sqrt_one_minus_alpha_bars_prev, t) * noise[1]  # Algorithm 1, line 5
        unknown = ancestral_step(x_t, prediction, ts[n], noise[0], *history)  # line 7
        unknown, *history = unknown if history else (unknown,)
        x = jnp.where(mask, known, unknown)  # line 8

        def jump_up():
            return signal_scale[n] * x + noise_scale[n] * draw(jump_keys, n)  # line 10

        x = jax.lax.cond(signal_scale[n] < 1, jump_up, lambda: x)
        return (x, *history) if history else x

    def predict_at(x, n, **given):
        return predict(x, ts[n], **given)

    with cast_once(network, guide):
        return scan_steps(step, predict_at, draw_noise, carry, xs, self_condition)


def inpaint(
    model: Any,
    images: Array,
    mask: np.ndarray,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    labels: Any = None,
    guide: Any = None,
    resamplings: int = 10,
    jump: int = 10,
    sampler: SamplerConfig | str = ANCESTRAL,
    config: DiffusionConfig | None = None,
    dtype: Any = jnp.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Draw the unknown pixels of images so that they fit the known ones: RePaint, Lugmayr et al. 2022, Algorithm 1.

    Each visit of a timestep draws new noise (see `rng`). If no pixel is known and resamplings = 1, the result is that
    of `sample`.

    Args:
        model, seed, batch_size, seeds, guide, config, dtype, progress: as in `sample`.
        images: float (N, H, W, C) in [-1, 1].
        mask: (H, W), nonzero where a pixel is known.
        labels: as in `sample`. Default: no label.
        resamplings: how often each segment of the timesteps is denoised, at least 1. Multiplies the number of network
            calls by about this; their exact number is the length of `spec.spacing.repaint_schedule`.
        jump: steps per segment, from 1 to the number of steps - 1.
        sampler: ddpm. Default: T steps.

    Returns:
        Images (N, H, W, C), about within [-1, 1]. Known pixels are those of `images`, bit for bit.

    Raises:
        UserError: another sampler, a wrong shape, or settings that do not fit.
    """
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, None)
    sampler, config = sampling_settings(sampler, config, settings)
    given = check_images("images", images, image_shape, dtype)
    images, mask = to_data_range(given, config.data_range), check_mask(mask, given)
    known = jnp.asarray(mask)[..., None]
    config.check()
    require_timesteps(config, "inpainting")
    sampler.check(config.timesteps)
    check_ancestral(sampler)
    labels, guide = labels_and_guide(model, unless_given(model, labels), len(images), sampler, guide)
    steps = len(repaint_schedule(sampling_timesteps(config, sampler), resamplings, jump)[0])
    images_drawn = seeds_and_indices(seed, seeds, len(images))
    keys = [image_keys(*images_drawn, purpose) for purpose in (rng.SAMPLING, rng.KNOWN, rng.JUMP)]

    def draw(indices):
        of_images = labels and labels.rows(indices)
        arrays = shard((network, guide), images[indices], tuple(k[indices] for k in keys), of_images)
        x_T = compiled_noise_at(arrays[3][0], config.timesteps, tuple(images.shape[1:]), images.dtype)
        history = initial_history(x_T, sampler, self_conditioned(network, guide))
        carry, xs = initial_carry(x_T, np.arange(steps), history=history)

        def run(carry, xs):
            return _inpaint(*arrays, known, carry, xs, config, sampler, resamplings, jump)

        return run_with_progress(run, carry, xs, progress)[0]

    x_0 = from_data_range(sample_in_batches(draw, len(images), batch_size), config.data_range)
    return x_0 if config.data_range == USUAL else np.where(mask[..., None], given, x_0)
