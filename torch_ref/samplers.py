"""The reverse process: one loop around the step of any sampler."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from torch_ref import rng
from torch_ref.config import DiffusionConfig, SamplerConfig
from torch_ref.errors import UserError
from torch_ref.sampler_steps import ancestral_step, ddim_step, dpmpp_step, edm_step, first_history
from torch_ref.schedules import Tables, make_tables
from torch_ref.spacing import spaced_timesteps, timesteps_below

ANCESTRAL = SamplerConfig()  # all T steps


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


def chain_of(config: DiffusionConfig, sampler: SamplerConfig) -> np.ndarray:
    """The timesteps that the sampler visits: descending integers in [0, T)."""
    alpha_bars = schedule_tables(config, np.float64).alpha_bars
    return spaced_timesteps(sampler.spacing, sampler.num_steps or config.timesteps, alpha_bars)


def schedule_tables(config: DiffusionConfig, dtype, chain: np.ndarray | None = None) -> Tables:
    return make_tables(config.schedule, config.timesteps, config.beta_start, config.beta_end, dtype, chain)


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
    steps = len(chain)
    if isinstance(num_frames, int):
        num_frames = tuple(np.round(np.linspace(0, steps, num_frames)).astype(int))
    kept = np.asarray(num_frames, int)
    slots = np.full(steps + 1, len(kept))  # after k steps the state goes to frame slots[k]; len: nowhere
    slots[kept] = np.arange(len(kept))
    frames = x_T.new_zeros((len(kept), *x_T.shape))
    every = max(1, steps // 50)
    if slots[0] < len(kept):
        frames[slots[0]] = x_T
    x = x_T
    for done, t in enumerate(chain.tolist(), 1):
        arguments = x, predict(x, torch.full((x.shape[0],), t, device=x.device)), t, draw_noise(t)
        if history is None:
            x = step(*arguments)
        else:
            x, history = step(*arguments, history)
        if slots[done] < len(kept):
            frames[slots[done]] = x
        if progress is not None and done % every == 0:
            progress(done)
    return x, frames


def picture_keys(seed: int | Sequence[int], indices) -> np.ndarray:
    """Keys of pictures: number `indices` of one seed, or of one seed each."""
    if np.ndim(seed) == 0:
        return rng.fold_in(rng.key(seed, rng.SAMPLING), indices)
    return np.stack([rng.key(s, rng.SAMPLING, int(i)) for s, i in zip(seed, indices, strict=True)])


@torch.no_grad()
def sample_indices(
    network: nn.Module,
    config: DiffusionConfig,
    image_shape: tuple[int, int, int],
    seed: int | Sequence[int],
    indices,
    *,
    sampler: SamplerConfig = ANCESTRAL,
    num_frames: int | tuple[int, ...] = 0,
    dtype=torch.float32,
    progress: Callable | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures number `indices` of a seed, or of one seed each: float (B, C, H, W), around [-1, 1], and frames.

    `image_shape` is (H, W, C). Picture i is drawn at (SAMPLING, i, t), x_T at t = T whatever the chain: it does not
    depend on its batch, beyond the last digits of floating-point arithmetic. Computed where the network's parameters
    are. Raises UserError for settings that do not fit.
    """
    config.check()
    sampler.check(config.timesteps)
    keys = picture_keys(seed, indices)
    parameter = next(network.parameters(), None)
    device = None if parameter is None else parameter.device
    as_numpy = np.float64 if dtype == torch.float64 else np.float32
    chain = chain_of(config, sampler)
    step = make_step(schedule_tables(config, as_numpy, chain), config, sampler, chain, network)

    def draw_noise(t):
        noise = rng.normal(rng.fold_in(keys, t), tuple(image_shape), dtype)  # (B, H, W, C)
        return noise.permute(0, 3, 1, 2).contiguous().to(device)

    x_T = draw_noise(config.timesteps)
    history = first_history(x_T) if sampler.sampler == "dpmpp" else None
    noise = (lambda t: None) if sampler.is_deterministic else draw_noise
    return reverse_process(step, network, x_T, chain, noise, num_frames, progress, history)


def sample(
    model: nn.Module,
    num_images: int = 16,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    sampler: SamplerConfig = ANCESTRAL,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """Pictures 0 to num_images - 1 of a seed as a NumPy array (N, H, W, C), around [-1, 1], `batch_size` at a time.

    seeds: one picture of each of these seeds instead, its picture 0. model: what `load_model` returns, or any module
    (x, t) -> prediction, which needs `config` and `image_shape` (H, W, C). The last batch is filled up and cut, so that
    all are computed alike. `progress` as in `reverse_process`, per batch. Raises UserError for counts below 1 and for
    settings that do not fit.
    """
    num_images = num_images if seeds is None else len(seeds)
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} = {value}: expected at least 1.")
    info = getattr(model, "info", None)
    config = config or info.diffusion
    image_shape = image_shape or info.image_shape
    batch_size = min(batch_size, num_images)
    parts = []
    for first in range(0, num_images, batch_size):
        indices = np.arange(first, first + batch_size)
        address = seed, indices
        if seeds is not None:
            address = [seeds[min(i, num_images - 1)] for i in indices], np.zeros_like(indices)
        x_0, _ = sample_indices(model, config, image_shape, *address, sampler=sampler, dtype=dtype, progress=progress)
        parts.append(x_0.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)[:num_images]
