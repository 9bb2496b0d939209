"""The reverse process: one loop around the step of any sampler."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jax_ddpm.spec.diffusion_config import (
    CONTINUOUS_STEPS,
    NO_SIGNAL,
    DiffusionConfig,
    SamplerConfig,
    require_timesteps,
)
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.registered import SAMPLERS
from jax_ddpm.spec.spacing import frame_slots, next_timesteps, spaced_timesteps, timesteps_from
from torch_ref.sampling.steps import (
    ancestral_step,
    clipped_x_0,
    ddim_step,
    dpmpp_step,
    edm_step,
    own_step,
    remembering_x_0,
)
from torch_ref.schedules import Tables, schedule_tables


def make_step(
    tables: Tables,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    chain: np.ndarray,
    predict: Callable,
    self_condition: bool = False,
    gradient: Callable | None = None,
) -> Callable:
    """The sampler's step function: step(x_t, prediction, t, noise) -> x.

    The step of "dpmpp", and with self_condition every step, also takes and returns a history, whose first part is the
    predicted x_0. gradient: of a classifier, for "ddpm"; the other samplers have it in `predict`.
    """
    if sampler.sampler == "dpmpp":
        return partial(dpmpp_step, tables, config)
    if sampler.sampler == "heun":
        below = next_timesteps(chain, config.timesteps)
        return partial(edm_step, tables, config, predict=predict, next_timesteps=below)
    step = {
        "ddpm": partial(ancestral_step, tables, config, gradient=gradient),
        "ddim": partial(ddim_step, tables, config, eta=sampler.eta),
        "euler": partial(edm_step, tables, config),
    }.get(sampler.sampler)
    if sampler.sampler in SAMPLERS:
        step = partial(own_step, tables, config, SAMPLERS[sampler.sampler])
    return remembering_x_0(step, partial(clipped_x_0, tables, config)) if self_condition else step


def sampling_timesteps(config: DiffusionConfig, sampler: SamplerConfig, start_t: int | None = None) -> np.ndarray:
    """The timesteps that a sampler visits: descending integers in [0, T). With start_t: only those <= start_t.

    For the objectives edm and flow: the numbers of the steps, from num_steps - 1 down to 0, as in `solvers`.
    """
    if config.is_continuous:
        if start_t is not None:
            require_timesteps(config, "start_t")
        return np.arange(sampler.num_steps or CONTINUOUS_STEPS, dtype=np.int32)[::-1]
    alpha_bars = schedule_tables(config, np.float64).alpha_bars
    chain = spaced_timesteps(sampler.spacing, sampler.num_steps or config.timesteps, alpha_bars)
    chain = chain if start_t is None else timesteps_from(chain, start_t, config.timesteps)
    require(config.objective != "eps" or alpha_bars[chain[0]] > 0, "objective", config.objective, NO_SIGNAL)
    return chain


def reverse_process(
    step: Callable,
    predict: Callable,
    x_T: Tensor,
    timesteps: int | np.ndarray,
    draw_noise: Callable,
    num_frames: int | tuple[int, ...] = 0,
    progress: Callable | None = None,
    history=None,
    self_condition: bool = False,
) -> tuple[Tensor, Tensor]:
    """From x_T to x_0 over timesteps: x <- step(x, predict(x, t), t, draw_noise(t)).

    predict takes t as integers (B,); step and draw_noise take one integer. Arguments and results are those of
    `jax_ddpm.sampling.reverse.reverse_process`.
    """
    chain = np.arange(timesteps - 1, -1, -1) if isinstance(timesteps, int) else timesteps
    num_frames, slots = frame_slots(num_frames, len(chain))
    frames = x_T.new_zeros((num_frames, *x_T.shape))
    every = max(1, len(chain) // 50)
    if slots[0] < num_frames:
        frames[slots[0]] = x_T
    x = x_T
    for done, t in enumerate(chain.tolist(), 1):
        given = {"x_self_cond": history[0]} if self_condition else {}
        arguments = x, predict(x, torch.full((x.shape[0],), t, device=x.device), **given), t, draw_noise(t)
        if history is None:
            x = step(*arguments)
        else:
            x, history = step(*arguments, history)
        if slots[done] < num_frames:
            frames[slots[done]] = x
        if progress is not None and done % every == 0:
            progress(done)
    return x, frames
