"""The reverse process: one loop around the step of any sampler."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.spacing import frame_slots, spaced_timesteps, timesteps_below
from torch_ref.sampling.steps import ancestral_step, ddim_step, dpmpp_step, edm_step
from torch_ref.schedules import Tables, schedule_tables


def make_step(
    tables: Tables, config: DiffusionConfig, sampler: SamplerConfig, chain: np.ndarray, predict: Callable
) -> Callable:
    """The sampler's step(x_t, prediction, t, noise) -> x along the chain; that of "dpmpp" has a history besides."""
    settings = {"objective": config.objective, "clip": config.clip, "clip_percentile": config.clip_percentile}
    if sampler.sampler == "ddpm":
        return partial(ancestral_step, tables, variance=config.variance, **settings)
    if sampler.sampler == "ddim":
        return partial(ddim_step, tables, eta=sampler.eta, **settings)
    if sampler.sampler == "dpmpp":
        return partial(dpmpp_step, tables, **settings)
    if sampler.sampler == "heun":
        settings |= {"predict": predict, "below": timesteps_below(chain, config.timesteps)}
    return partial(edm_step, tables, **settings)


def chain_of(config: DiffusionConfig, sampler: SamplerConfig, start_t: int | None = None) -> np.ndarray:
    """The timesteps that the sampler visits: descending integers in [0, T), with start_t those that are at most that.

    Raises UserError for a start_t above all timesteps or below the chain's.
    """
    alpha_bars = schedule_tables(config, np.float64).alpha_bars
    chain = spaced_timesteps(sampler.spacing, sampler.num_steps or config.timesteps, alpha_bars)
    if start_t is None:
        return chain
    expected = f"expected {chain[-1]}, the sampler's last timestep, to T - 1 = {config.timesteps - 1}"
    require(chain[-1] <= start_t < config.timesteps, "start_t", start_t, expected)
    return chain[chain <= start_t]


def reverse_process(
    step: Callable,
    predict: Callable,
    x_T: Tensor,
    timesteps: int | np.ndarray,
    draw_noise: Callable,
    num_frames: int | tuple[int, ...] = 0,
    progress: Callable | None = None,
    history=None,
) -> tuple[Tensor, Tensor]:
    """From x_T to x_0 along a chain of timesteps: x <- step(x, predict(x, t), t, draw_noise(t)).

    timesteps: the chain's, descending; an integer T means T-1, ..., 0. predict takes t as integers (B,); step and
    draw_noise take one integer. With a `history` step takes it too and returns (x, history). Returns x_0 and
    `num_frames` states evenly spaced from x_T to x_0 (none unless asked for), or, for a tuple, the states after so many
    steps. `progress` is called with the number of steps done, about fifty times.
    """
    chain = np.arange(timesteps - 1, -1, -1) if isinstance(timesteps, int) else timesteps
    num_frames, slots = frame_slots(num_frames, len(chain))
    frames = x_T.new_zeros((num_frames, *x_T.shape))
    every = max(1, len(chain) // 50)
    if slots[0] < num_frames:
        frames[slots[0]] = x_T
    x = x_T
    for done, t in enumerate(chain.tolist(), 1):
        arguments = x, predict(x, torch.full((x.shape[0],), t, device=x.device)), t, draw_noise(t)
        if history is None:
            x = step(*arguments)
        else:
            x, history = step(*arguments, history)
        if slots[done] < num_frames:
            frames[slots[done]] = x
        if progress is not None and done % every == 0:
            progress(done)
    return x, frames
