"""Editing with a trained model: interpolate between seeds, invert and reconstruct images, img2img.

Images are floats (N, H, W, C) in [-1, 1], as arguments and as results. Each function has the same arguments, results
and errors as the function of that name in `jax_ddpm`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Unpack

import numpy as np
import torch
from torch import nn

from jax_ddpm.spec.data_range import to_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, require_timesteps
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.inputs import check_draws_no_noise, check_images, check_invertible, seeds_and_indices
from jax_ddpm.spec.labels import mixed_labels
from jax_ddpm.spec.spacing import next_timesteps
from torch_ref import diffusion
from torch_ref.layouts import channels_first, device_of, numpy_dtype
from torch_ref.sampling.guidance import guided_predict, self_conditioned
from torch_ref.sampling.reverse import reverse_process, sampling_timesteps
from torch_ref.sampling.samplers import (
    ANCESTRAL,
    image_keys,
    labels_and_guide,
    noise_at,
    opened,
    sample,
    sample_in_batches,
    tensors,
    unless_given,
    unpack_model,
)
from torch_ref.sampling.steps import ddim_inverse_step, remembering_x_0, x_0_below
from torch_ref.schedules import schedule_tables

DDIM = SamplerConfig("ddim")  # all T steps


def slerp(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spherical linear interpolation, Shoemake 1985: (sin((1 - w) theta) a + sin(w theta) b) / sin(theta).

    weights: w, (N,) in [0, 1]. Returns (N, *a.shape). Where a and b are nearly parallel the interpolation is linear.
    """
    theta = np.arccos(np.clip(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    coefficients = np.stack([1 - weights, weights])
    if np.sin(theta) > 1e-3:
        coefficients = np.sin(coefficients * theta) / np.sin(theta)
    return np.tensordot(coefficients.T.astype(a.dtype), np.stack([a, b]), 1)


def interpolate(
    model: nn.Module,
    seed_a: int,
    seed_b: int,
    num_images: int = 16,
    batch_size: int = 64,
    *,
    labels=None,
    guide=None,
    sampler: SamplerConfig | str = DDIM,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Interpolate between image 0 of two seeds, at equal angles between their x_T: Song et al. 2021, section 5.3."""
    model = opened(model)
    _, config, shape = unpack_model(model, config, image_shape)
    sampler, config = sampling_settings(sampler, config, settings)
    check_draws_no_noise(sampler)
    require(num_images >= 2, "num_images", num_images, "expected at least 2, for the images of both seeds")
    config.check()
    noise = noise_at(image_keys([seed_a, seed_b], [0, 0]), config.timesteps, shape, dtype)
    a, b = noise.permute(0, 2, 3, 1).numpy()
    x_T = np.stack([a, *slerp(a, b, np.linspace(0, 1, num_images)[1:-1]), b])
    x_T = x_T * config.initial_sigma if config.is_continuous else x_T
    if hasattr(model, "info") and np.ndim(labels) == 1 and len(labels) == 2:
        labels = mixed_labels(model.info, *labels, num_images)
    options = {"sampler": sampler, "config": config, "image_shape": shape, "dtype": dtype, "progress": progress}
    conditions = {"labels": unless_given(model, labels), "guide": guide}
    return sample(model, batch_size=batch_size, x_T=x_T, **conditions, **options)


@torch.no_grad()
def invert(
    model: nn.Module,
    images: np.ndarray,
    batch_size: int = 64,
    *,
    labels=None,
    guide=None,
    sampler: SamplerConfig | str = DDIM,
    config: DiffusionConfig | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Encode images as x_T with DDIM's ODE, Song et al. 2021, section 4.3. Returns x_T (N, H, W, C).

    The step up to t uses eps predicted from the state at the next lower timestep that the sampler visits. The first
    step has no such state: it uses eps predicted from the images at the lowest timestep. A network with
    self-conditioning is given the images in the first step, then the x_0 that the last step predicted.
    """
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, None)
    sampler, config = sampling_settings(sampler, config, settings)
    images = to_data_range(check_images("images", images, image_shape, numpy_dtype(dtype)), config.data_range)
    config.check()
    require_timesteps(config, "inversion")
    sampler.check(config.timesteps)
    check_invertible(sampler)
    labels, guide = labels_and_guide(model, unless_given(model, labels), len(images), sampler, guide)

    chain = sampling_timesteps(config, sampler)
    tables = schedule_tables(config, images.dtype, chain)
    next_t = torch.from_numpy(np.maximum(next_timesteps(chain, config.timesteps), chain[-1])).long()

    def draw(indices):
        x = channels_first(images[indices], device_of(network))
        predict = guided_predict(network, config, sampler, tensors(labels, indices, x.device), guide)

        def eps_at_next_timestep(x, t, **given):
            s = next_t.to(t.device)[t]
            prediction, _ = diffusion.split_prediction(predict(x, s, **given), x)
            return diffusion.predicted_eps(tables, config.objective, x, s, prediction)

        step, options = partial(ddim_inverse_step, tables), {"progress": progress}
        if self_conditioned(network, guide):
            step = remembering_x_0(step, partial(x_0_below, tables))
            options |= {"history": (x,), "self_condition": True}
        return reverse_process(step, eps_at_next_timestep, x, chain[::-1], lambda t: None, **options)[0]

    return sample_in_batches(draw, len(images), batch_size)


def reconstruct(
    model: nn.Module,
    x_T: np.ndarray,
    batch_size: int = 64,
    *,
    labels=None,
    guide=None,
    sampler: SamplerConfig | str = DDIM,
    config: DiffusionConfig | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Reconstruct images from the x_T of `invert`: `sample` without clipping, because clipping cannot be inverted."""
    model = opened(model)
    _, config, _ = unpack_model(model, config, None)
    sampler, config = sampling_settings(sampler, config, settings)
    options = {"config": replace(config, clip="none"), "image_shape": np.shape(x_T)[1:], "dtype": dtype}
    options |= {"labels": unless_given(model, labels), "guide": guide}
    return sample(model, batch_size=batch_size, x_T=x_T, sampler=sampler, **options, progress=progress)


def img2img(
    model: nn.Module,
    images: np.ndarray,
    start_t: int,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    labels=None,
    guide=None,
    sampler: SamplerConfig | str = ANCESTRAL,
    config: DiffusionConfig | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Vary images: noise them to start_t and sample from there (SDEdit, Meng et al. 2022, section 3)."""
    model = opened(model)
    _, config, image_shape = unpack_model(model, config, None)
    sampler, config = sampling_settings(sampler, config, settings)
    images = to_data_range(check_images("images", images, image_shape, numpy_dtype(dtype)), config.data_range)
    config.check()
    require_timesteps(config, "img2img")
    sampler.check(config.timesteps)
    keys = image_keys(*seeds_and_indices(seed, seeds, len(images)))
    shape = images.shape[1:]
    noise = noise_at(keys, config.timesteps, shape, dtype)
    t = torch.full((len(images),), int(sampling_timesteps(config, sampler, start_t)[0]))
    x_t = diffusion.q_sample(schedule_tables(config, images.dtype), channels_first(images, None), t, noise)
    x_T = x_t.permute(0, 2, 3, 1).numpy()
    options = {"sampler": sampler, "config": config, "image_shape": shape, "dtype": dtype, "progress": progress}
    options |= {"labels": unless_given(model, labels), "guide": guide}
    return sample(model, seed=seed, batch_size=batch_size, seeds=seeds, x_T=x_T, start_t=start_t, **options)
