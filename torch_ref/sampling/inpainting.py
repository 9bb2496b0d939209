"""Inpainting: draw the unknown pixels of images so that they fit the known ones."""

from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np
import torch
from torch import nn

from jax_ddpm.spec.data_range import USUAL, from_data_range, to_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, require_timesteps
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.inputs import check_ancestral, check_images, check_mask, seeds_and_indices
from jax_ddpm.spec.spacing import repaint_schedule
from torch_ref import diffusion, rng
from torch_ref.layouts import channels_first, device_of, numpy_dtype
from torch_ref.sampling.guidance import guided_predict, self_conditioned
from torch_ref.sampling.reverse import make_step, reverse_process, sampling_timesteps
from torch_ref.sampling.samplers import (
    ANCESTRAL,
    image_keys,
    labels_and_guide,
    noise_at,
    opened,
    sample_in_batches,
    tensors,
    unless_given,
    unpack_model,
)
from torch_ref.sampling.steps import initial_history
from torch_ref.schedules import Tables, schedule_tables


def jump_alpha_ratios(tables: Tables, timesteps: np.ndarray) -> np.ndarray:
    """For each step that a jump up follows: alpha_bar after the jump, divided by alpha_bar before it. For others, 1."""
    following = np.append(timesteps[1:], -1)
    return np.where(following >= timesteps, tables.alpha_bars[following] / tables.alpha_bars_prev[timesteps], 1.0)


@torch.no_grad()
def inpaint(
    model: nn.Module,
    images: np.ndarray,
    mask: np.ndarray,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    labels=None,
    guide=None,
    resamplings: int = 10,
    jump: int = 10,
    sampler: SamplerConfig | str = ANCESTRAL,
    config: DiffusionConfig | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
    **settings: Unpack[SamplingSettings],
) -> np.ndarray:
    """Draw the unknown pixels of images so that they fit the known ones: RePaint, Lugmayr et al. 2022, Algorithm 1."""
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, None)
    sampler, config = sampling_settings(sampler, config, settings)
    given = check_images("images", images, image_shape, numpy_dtype(dtype))
    images, mask = to_data_range(given, config.data_range), check_mask(mask, given)
    device = device_of(network)
    is_known = torch.from_numpy(mask).to(device)
    config.check()
    require_timesteps(config, "inpainting")
    sampler.check(config.timesteps)
    check_ancestral(sampler)
    labels, guide = labels_and_guide(model, unless_given(model, labels), len(images), sampler, guide)
    chain, self_condition = sampling_timesteps(config, sampler), self_conditioned(network, guide)
    tables = schedule_tables(config, images.dtype, chain)
    timesteps, visits = repaint_schedule(chain, resamplings, jump)
    ratios = jump_alpha_ratios(schedule_tables(config, np.float64, chain), timesteps)
    signal_scale, noise_scale = (np.sqrt(ratio).astype(images.dtype).tolist() for ratio in (ratios, 1 - ratios))
    noise_index = timesteps + visits * (config.timesteps + 1)
    images_drawn = seeds_and_indices(seed, seeds, len(images))
    keys, known_keys, jump_keys = (image_keys(*images_drawn, p) for p in (rng.SAMPLING, rng.KNOWN, rng.JUMP))

    def draw(indices):
        batch = channels_first(images[indices], device)
        guided = guided_predict(network, config, sampler, tensors(labels, indices, device), guide)
        ancestral_step = make_step(tables, config, sampler, chain, guided, self_condition)

        def noise_of(keys, number):
            return noise_at(keys[indices], number, images.shape[1:], dtype).to(device)

        def draw_noise(n):
            return noise_of(keys, noise_index[n]), noise_of(known_keys, noise_index[n])

        def step(x_t, prediction, n, noise, *history):
            t = torch.full((x_t.shape[0],), int(timesteps[n]), device=device)
            known = diffusion.extract(tables.sqrt_alpha_bars_prev, t) * batch
            known = (
                known + diffusion.extract(tables.sqrt_one_minus_alpha_bars_prev, t) * noise[1]
            )  # Algorithm 1, line 5
            unknown = ancestral_step(x_t, prediction, t, noise[0], *history)  # line 7
            unknown, *history = unknown if history else (unknown,)
            x = torch.where(is_known, known, unknown)  # line 8
            if signal_scale[n] < 1:
                x = signal_scale[n] * x + noise_scale[n] * noise_of(jump_keys, noise_index[n])  # line 10
            return (x, *history) if history else x

        def predict_at(x, n, **given):
            return guided(x, torch.from_numpy(timesteps).to(x.device)[n].long(), **given)

        x_T, steps = noise_of(keys, config.timesteps), np.arange(len(timesteps))
        options = {"history": initial_history(x_T, sampler, self_condition), "self_condition": self_condition}
        return reverse_process(step, predict_at, x_T, steps, draw_noise, progress=progress, **options)[0]

    x_0 = from_data_range(sample_in_batches(draw, len(images), batch_size), config.data_range)
    return x_0 if config.data_range == USUAL else np.where(mask[..., None], given, x_0)
