"""Editing with a trained model: interpolate between seeds, invert and reconstruct images, img2img.

Images are floats (N, H, W, C) in [-1, 1], as arguments and as results. `model`, `seeds`, `config`, `progress` and
`dtype` are those of `jax_ddpm.sample`. Image i uses the same noise as image i of `sample` with this seed. Wrong shapes
and settings raise UserError.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import diffusion
from jax_ddpm.arrays import Array
from jax_ddpm.layers import cast_once
from jax_ddpm.sampling.guidance import guided_predict, self_conditioned
from jax_ddpm.sampling.reverse import initial_carry, run_with_progress, sampling_timesteps, scan_steps
from jax_ddpm.sampling.samplers import (
    ANCESTRAL,
    image_keys,
    labels_and_guide,
    noise_at,
    opened,
    sample,
    sample_in_batches,
    shard,
    unless_given,
    unpack_model,
)
from jax_ddpm.sampling.steps import ddim_inverse_step, remembering_x_0, x_0_below
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.data_range import to_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, require_timesteps
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.inputs import check_draws_no_noise, check_images, check_invertible, seeds_and_indices
from jax_ddpm.spec.labels import mixed_labels
from jax_ddpm.spec.spacing import next_timesteps

DDIM = SamplerConfig("ddim")  # all T steps


def slerp(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spherical linear interpolation, Shoemake 1985: (sin((1 - w) theta) a + sin(w theta) b) / sin(theta).

    a, b: arrays of one shape, taken as vectors with the angle theta between them. weights: w, (N,) in [0, 1]. Returns
    (N, *a.shape). Where a and b are nearly parallel the interpolation is linear.
    """
    theta = np.arccos(np.clip(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    coefficients = np.stack([1 - weights, weights])
    if np.sin(theta) > 1e-3:
        coefficients = np.sin(coefficients * theta) / np.sin(theta)
    return np.tensordot(coefficients.T.astype(a.dtype), np.stack([a, b]), 1)


def interpolate(
    model: Any,
    seed_a: int,
    seed_b: int,
    num_images: int = 16,
    batch_size: int = 64,
    *,
    labels: Any = None,
    guide: Any = None,
    sampler: SamplerConfig | str = DDIM,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype: Any = jnp.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Interpolate between image 0 of two seeds: Song et al. 2021, section 5.3. Returns (N, H, W, C), N = num_images.

    The images are sampled from x_T at equal angles on the arc between the x_T of both seeds. The first and the last
    image are those of `sample` with these seeds.

    Args:
        model, batch_size, guide, config, image_shape, dtype, progress: as in `sample`.
        seed_a, seed_b: integers in [0, 2^32).
        num_images: N, at least 2.
        labels: one for all images, or two: then the labels, too, change from the first to the second, as
            `spec.labels.mixed_labels` does. Default: no label.
        sampler: one that draws no noise, so that x_T alone decides the image. Default: ddim with T steps.

    Raises:
        UserError: a sampler that draws noise, a count out of range, or settings that do not fit.
    """
    model = opened(model)
    _, config, shape = unpack_model(model, config, image_shape)
    sampler, config = sampling_settings(sampler, config, settings)
    check_draws_no_noise(sampler)
    require(num_images >= 2, "num_images", num_images, "expected at least 2, for the images of both seeds")
    config.check()
    a, b = np.asarray(noise_at(image_keys([seed_a, seed_b], [0, 0]), config.timesteps, tuple(shape), dtype))
    x_T = np.stack([a, *slerp(a, b, np.linspace(0, 1, num_images)[1:-1]), b])
    x_T = x_T * config.initial_sigma if config.is_continuous else x_T
    if hasattr(model, "info") and np.ndim(labels) == 1 and len(labels) == 2:
        labels = mixed_labels(model.info, *labels, num_images)
    options = {"sampler": sampler, "config": config, "image_shape": shape, "dtype": dtype, "progress": progress}
    conditions = {"labels": unless_given(model, labels), "guide": guide}
    return sample(model, batch_size=batch_size, x_T=x_T, **conditions, **options)


@partial(jax.jit, static_argnames=("graph", "config", "sampler"))
def _invert(graph, state, labels, carry, xs, config, sampler):
    network, guide = nnx.merge(graph, state)
    chain, predict = sampling_timesteps(config, sampler), guided_predict(network, config, sampler, labels, guide)
    tables = schedule_tables(config, carry[0].dtype, chain)
    next_t = jnp.asarray(np.maximum(next_timesteps(chain, config.timesteps), chain[-1]))

    def eps_at_next_timestep(x, t, **given):
        prediction, _ = diffusion.split_prediction(predict(x, next_t[t], **given), x)
        return diffusion.predicted_eps(tables, config.objective, x, next_t[t], prediction)

    step, self_condition = partial(ddim_inverse_step, tables), self_conditioned(network, guide)
    step = remembering_x_0(step, partial(x_0_below, tables)) if self_condition else step
    with cast_once(network, guide):
        return scan_steps(step, eps_at_next_timestep, lambda t: None, carry, xs, self_condition)


def invert(
    model: Any,
    images: Array,
    batch_size: int = 64,
    *,
    labels: Any = None,
    guide: Any = None,
    sampler: SamplerConfig | str = DDIM,
    config: DiffusionConfig | None = None,
    dtype: Any = jnp.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Encode images as x_T with DDIM's ODE, Song et al. 2021, section 4.3. Returns x_T (N, H, W, C).

    `reconstruct` with the same sampler gives the images back, approximately: the more steps, the closer. Nothing is
    clipped. The step up to t uses eps predicted from the state at the next lower timestep that the sampler visits. The
    first step has no such state: it uses eps predicted from the images at the lowest timestep. A network with
    self-conditioning is given the images in the first step, then the x_0 that the last step predicted.

    Args:
        model, batch_size, guide, config, dtype, progress: as in `sample`.
        images: float (N, H, W, C) in [-1, 1].
        labels: as in `sample`. Default: no label.
        sampler: ddim with eta = 0. Default: T steps.

    Raises:
        UserError: another sampler, a wrong shape, or settings that do not fit.
    """
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, None)
    sampler, config = sampling_settings(sampler, config, settings)
    images = to_data_range(check_images("images", images, image_shape, dtype), config.data_range)
    config.check()
    require_timesteps(config, "inversion")
    sampler.check(config.timesteps)
    check_invertible(sampler)
    labels, guide = labels_and_guide(model, unless_given(model, labels), len(images), sampler, guide)

    def draw(indices):
        of_images = labels and labels.rows(indices)
        graph, state, x_0, of_images = shard((network, guide), images[indices], of_images)
        x_0 = jnp.asarray(x_0)
        history = (x_0,) if self_conditioned(network, guide) else None
        carry, xs = initial_carry(x_0, sampling_timesteps(config, sampler)[::-1], history=history)

        def run(carry, xs):
            return _invert(graph, state, of_images, carry, xs, config, sampler)

        return run_with_progress(run, carry, xs, progress)[0]

    return sample_in_batches(draw, len(images), batch_size)


def reconstruct(
    model: Any,
    x_T: Array,
    batch_size: int = 64,
    *,
    labels: Any = None,
    guide: Any = None,
    sampler: SamplerConfig | str = DDIM,
    config: DiffusionConfig | None = None,
    dtype: Any = jnp.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Reconstruct images from the x_T of `invert`: `sample` without clipping, because clipping cannot be inverted.

    Args:
        model, batch_size, guide, config, dtype, progress: as in `sample`.
        x_T: float (N, H, W, C).
        labels: as in `sample`. Default: no label.
        sampler: the one that was given to `invert`. Default: ddim with T steps.

    Returns:
        Images (N, H, W, C), about within [-1, 1].

    Raises:
        UserError: a wrong shape, or settings that do not fit.
    """
    model = opened(model)
    _, config, _ = unpack_model(model, config, None)
    sampler, config = sampling_settings(sampler, config, settings)
    options = {"config": replace(config, clip="none"), "image_shape": np.shape(x_T)[1:], "dtype": dtype}
    options |= {"labels": unless_given(model, labels), "guide": guide}
    return sample(model, batch_size=batch_size, x_T=x_T, sampler=sampler, **options, progress=progress)


def img2img(
    model: Any,
    images: Array,
    start_t: int,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    labels: Any = None,
    guide: Any = None,
    sampler: SamplerConfig | str = ANCESTRAL,
    config: DiffusionConfig | None = None,
    dtype: Any = jnp.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Vary images: noise them to start_t and sample from there (SDEdit, Meng et al. 2022, section 3).

    Args:
        model, batch_size, guide, sampler, config, dtype, progress: as in `sample`.
        images: float (N, H, W, C) in [-1, 1].
        start_t: integer in [0, T). A larger start_t changes the images more. The images are noised to the first
            timestep of the sampler that is at most start_t.
        labels: as in `sample`. Default: no label.
        seed, seeds: as in `sample`. Image i is noised with the noise that `sample` uses as x_T of image i.

    Returns:
        Images (N, H, W, C), about within [-1, 1].

    Raises:
        UserError: a wrong shape, a start_t out of range, or settings that do not fit.
    """
    model = opened(model)
    _, config, image_shape = unpack_model(model, config, None)
    sampler, config = sampling_settings(sampler, config, settings)
    images = to_data_range(check_images("images", images, image_shape, dtype), config.data_range)
    config.check()
    require_timesteps(config, "img2img")
    sampler.check(config.timesteps)
    keys = image_keys(*seeds_and_indices(seed, seeds, len(images)))
    noise = noise_at(keys, config.timesteps, images.shape[1:], dtype)
    t = np.full(len(images), sampling_timesteps(config, sampler, start_t)[0])
    x_t = diffusion.q_sample(schedule_tables(config, images.dtype), images, t, noise)
    start = {"x_T": x_t, "start_t": start_t, "seeds": seeds, "image_shape": images.shape[1:]}
    start |= {"labels": unless_given(model, labels), "guide": guide}
    return sample(
        model, len(images), seed, batch_size, **start, sampler=sampler, config=config, dtype=dtype, progress=progress
    )
