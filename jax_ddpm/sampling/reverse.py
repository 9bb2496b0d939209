"""The reverse process: one lax.scan around the step of any sampler."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_ddpm.arrays import Array
from jax_ddpm.sampling.steps import ancestral_step, ddim_step, dpmpp_step, edm_step
from jax_ddpm.schedules import Tables, schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.spacing import frame_slots, next_timesteps, spaced_timesteps

Images = Float[Array, "b h w c"]


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
        settings |= {"predict": predict, "next_timesteps": next_timesteps(chain, config.timesteps)}
    return partial(edm_step, tables, **settings)


def sampling_timesteps(config: DiffusionConfig, sampler: SamplerConfig, start_t: int | None = None) -> np.ndarray:
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
    x_T: Images,
    timesteps: int | np.ndarray,
    draw_noise: Callable,
    num_frames: int | tuple[int, ...] = 0,
    progress: Callable | None = None,
    history=None,
) -> tuple[Images, Float[Array, "f b h w c"]]:
    """From x_T to x_0 in one scan over a chain of timesteps: x <- step(x, predict(x, t), t, draw_noise(t)).

    timesteps: the chain's, descending; an integer T means T-1, ..., 0. predict takes t as integers (B,); step and
    draw_noise take one integer. With a `history` step takes it too and returns (x, history). Returns x_0 and
    `num_frames` states evenly spaced from x_T to x_0 (none unless asked for), or, for a tuple, the states after so many
    steps. Memory does not grow with the steps. `progress` is called with the number of steps done, about fifty times,
    between the scans of as many parts of the chain; not within jit.
    """
    chain = np.arange(timesteps - 1, -1, -1) if isinstance(timesteps, int) else timesteps
    carry, xs = initial_carry(x_T, chain, num_frames, history)
    return run_with_progress(partial(scan_steps, step, predict, draw_noise), carry, xs, progress)


def initial_carry(x_T: Images, chain: np.ndarray, num_frames: int | tuple[int, ...] = 0, history=None) -> tuple:
    """`carry` and `xs` of the scan: (x_T, frames or None, history), and (timesteps, slots) of the chain.

    slots: the number of the frame that the state after a step becomes; beyond the last frame if none.
    """
    num_frames, slots = frame_slots(num_frames, len(chain))
    frames = jnp.zeros((num_frames, *x_T.shape), x_T.dtype).at[slots[0]].set(x_T, mode="drop") if num_frames else None
    return (x_T, frames, history), (chain.astype(np.int32), slots[1:])


def scan_steps(step: Callable, predict: Callable, draw_noise: Callable, carry: tuple, xs: tuple) -> tuple:
    """`carry` after the steps of `xs`, all or part of the chain, in one scan; arguments as in `reverse_process`."""

    def body(carry, at):
        x, frames, history = carry
        t, slot = at
        arguments = x, predict(x, jnp.full((x.shape[0],), t)), t, draw_noise(t)
        if history is None:
            x = step(*arguments)
        else:
            x, history = step(*arguments, history)
        if frames is not None:
            frames = frames.at[slot].set(x, mode="drop")
        return (x, frames, history), None

    return jax.lax.scan(body, carry, xs)[0]


def run_with_progress(run: Callable, carry: tuple, xs: tuple, progress: Callable | None) -> tuple[Images, Array]:
    """x_0 and the frames by run(carry, xs) -> carry: at once, or in some fifty parts between which progress is told.

    The device never waits for the host: a part is sent off before the part before it is waited for.
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
