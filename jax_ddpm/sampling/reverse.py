"""The reverse process: one `lax.scan` around the step of any sampler."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_ddpm.arrays import Array
from jax_ddpm.objectives import make_objective
from jax_ddpm.sampling.steps import (
    ancestral_step,
    clipped_x_0,
    ddim_step,
    dpmpp_step,
    edm_step,
    own_step,
    remembering_x_0,
)
from jax_ddpm.schedules import Tables, schedule_tables
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

Images = Float[Array, "b h w c"]


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
    predicted x_0: step(x_t, prediction, t, noise, history) -> (x, history).

    chain: the timesteps that the sampler visits. predict: the network, (x, t) -> prediction; "heun" calls it again,
    with self_condition as predict(x, t, x_self_cond=x_0). gradient: of a classifier, for "ddpm", as in
    `ancestral_step`; the other samplers have it in `predict` (`guided_by_classifier`).
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

    Raises UserError unless start_t is from the last timestep of the sampler to T - 1, and for the objective eps if the
    first timestep has no signal (alpha_bar = 0).
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


def sampling_levels(config: DiffusionConfig, sampler: SamplerConfig) -> np.ndarray:
    """The noise levels at which a sampler's steps start, descending: timesteps, or floats (edm, flow)."""
    chain = sampling_timesteps(config, sampler)
    return make_objective(config).levels(len(chain))[chain + 1].astype(np.float32) if config.is_continuous else chain


def reverse_process(
    step: Callable,
    predict: Callable,
    x_T: Images,
    timesteps: int | np.ndarray,
    draw_noise: Callable,
    num_frames: int | tuple[int, ...] = 0,
    progress: Callable | None = None,
    history=None,
    self_condition: bool = False,
) -> tuple[Images, Float[Array, "f b h w c"]]:
    """From x_T to x_0 in one scan over timesteps: x <- step(x, predict(x, t), t, draw_noise(t)).

    Memory does not grow with the number of steps.

    Args:
        step: (x, prediction, t, noise) -> x, t one integer.
        predict: (x, t) -> prediction, t integers (B,).
        x_T: initial states (B, H, W, C).
        timesteps: descending integers. An integer T means T-1, ..., 0.
        draw_noise: t -> noise, t one integer.
        num_frames: how many states, evenly spaced from x_T to x_0, to return. A tuple: the states after these numbers
            of steps.
        progress: called with the number of steps done, about fifty times. The timesteps are then split into as many
            scans, which is not possible inside jit.
        history: initial history of a step with memory: (x, prediction, t, noise, history) -> (x, history).
        self_condition: give the first part of the history to the network: predict(x, t, x_self_cond=history[0]).

    Returns:
        x_0, and the frames (F, B, H, W, C).
    """
    chain = np.arange(timesteps - 1, -1, -1) if isinstance(timesteps, int) else timesteps
    carry, xs = initial_carry(x_T, chain, num_frames, history)
    scan = partial(scan_steps, step, predict, draw_noise, self_condition=self_condition)
    return run_with_progress(scan, carry, xs, progress)


def initial_carry(x_T: Images, chain: np.ndarray, num_frames: int | tuple[int, ...] = 0, history=None) -> tuple:
    """Initial `carry` (x_T, frames or None, history) and `xs` (timesteps, slots) of the scan.

    slots: for each step, the index of the frame that stores the state after it; the number of frames if none does.
    """
    num_frames, slots = frame_slots(num_frames, len(chain))
    frames = jnp.zeros((num_frames, *x_T.shape), x_T.dtype).at[slots[0]].set(x_T, mode="drop") if num_frames else None
    return (x_T, frames, history), (chain.astype(np.int32), slots[1:])


def scan_steps(
    step: Callable, predict: Callable, draw_noise: Callable, carry: tuple, xs: tuple, self_condition: bool = False
) -> tuple:
    """Scan over `xs`, all or part of the timesteps, and return the final `carry`. Arguments as in `reverse_process`."""

    def body(carry, x_slice):
        x, frames, history = carry
        t, slot = x_slice
        given = {"x_self_cond": history[0]} if self_condition else {}
        arguments = x, predict(x, jnp.full((x.shape[0],), t), **given), t, draw_noise(t)
        if history is None:
            x = step(*arguments)
        else:
            x, history = step(*arguments, history)
        if frames is not None:
            frames = frames.at[slot].set(x, mode="drop")
        return (x, frames, history), None

    return jax.lax.scan(body, carry, xs)[0]


def run_with_progress(run: Callable, carry: tuple, xs: tuple, progress: Callable | None) -> tuple[Images, Array]:
    """Run run(carry, xs) -> carry and return x_0 and the frames. With `progress`: in about fifty parts.

    Each part is dispatched before the host waits for the previous one, so the device is never idle.
    """
    if progress is None:
        carry = run(carry, xs)
    else:
        steps = len(xs[0])
        every = max(1, steps // 50)
        for done in range(0, steps, every):
            before, carry = carry, run(carry, tuple(a[done : done + every] for a in xs))
            jax.block_until_ready(before)
            if done:
                progress(done)
        jax.block_until_ready(carry)
        if steps % every == 0:
            progress(steps)
    x, frames, _ = carry
    return x, jnp.zeros((0, *x.shape), x.dtype) if frames is None else frames
