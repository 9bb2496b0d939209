"""Pictures from noise: keys of pictures, batches, and `sample`."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.inputs import check_images, seeds_and_indices
from torch_ref import rng
from torch_ref.layouts import channels_first, device_of, numpy_dtype
from torch_ref.sampling.reverse import chain_of, make_step, reverse_process
from torch_ref.sampling.steps import first_history
from torch_ref.schedules import schedule_tables

ANCESTRAL = SamplerConfig()  # all T steps


def noise_at(keys: np.ndarray, number: int, shape: tuple[int, int, int], dtype) -> Tensor:
    """The draw at (..., image index, number) for each picture's key: (B, C, H, W), of `shape` (H, W, C), on the CPU."""
    return rng.normal(rng.fold_in(keys, number), tuple(shape), dtype).permute(0, 3, 1, 2).contiguous()


def picture_keys(seed: int | Sequence[int], indices, purpose: int = rng.SAMPLING) -> np.ndarray:
    """Keys of pictures: number `indices` of one seed, or of one seed each."""
    if np.ndim(seed) == 0:
        return rng.fold_in(rng.key(seed, purpose), indices)
    return np.stack([rng.key(s, purpose, int(i)) for s, i in zip(seed, indices, strict=True)])


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
    x_T: Tensor | None = None,
    start_t: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures number `indices` of a seed, or of one seed each: float (B, C, H, W), around [-1, 1], and frames.

    `image_shape` is (H, W, C). Picture i is drawn at (SAMPLING, i, t), x_T at t = T whatever the chain: it does not
    depend on its batch, beyond the last digits of floating-point arithmetic. Computed where the network's parameters
    are. Raises UserError for settings that do not fit.
    """
    config.check()
    sampler.check(config.timesteps)
    keys, device = picture_keys(seed, indices), device_of(network)
    chain = chain_of(config, sampler)
    step = make_step(schedule_tables(config, numpy_dtype(dtype), chain), config, sampler, chain, network)

    def draw_noise(t):
        return noise_at(keys, t, image_shape, dtype).to(device)

    x_T = draw_noise(config.timesteps) if x_T is None else x_T
    history = first_history(x_T) if sampler.sampler == "dpmpp" else None
    noise = (lambda t: None) if sampler.is_deterministic else draw_noise
    return reverse_process(step, network, x_T, chain_of(config, sampler, start_t), noise, num_frames, progress, history)


def in_batches(draw: Callable, num_images: int, batch_size: int) -> np.ndarray:
    """draw(indices) -> (B, C, H, W), `batch_size` at a time, as one NumPy array of num_images (N, H, W, C).

    The last batch is filled up and cut, so that all are computed alike. From where the device's memory does not hold
    so many, half as many at a time. Raises UserError for counts below 1.
    """
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        require(value >= 1, name, value, "expected at least 1")
    batch_size = min(batch_size, num_images)
    first, parts = 0, []
    while first < num_images:
        indices = np.minimum(np.arange(first, first + batch_size), num_images - 1)
        try:
            parts.append(draw(indices).permute(0, 2, 3, 1).cpu().numpy())
            first += batch_size
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            text = f"The device's memory does not hold {batch_size} images at a time: now {batch_size // 2}."
            warnings.warn(text, stacklevel=3)
            batch_size //= 2
    return np.concatenate(parts)[:num_images]


def sample(
    model: nn.Module,
    num_images: int = 16,
    seed: int = 0,
    batch_size: int = 64,
    *,
    seeds: Sequence[int] | None = None,
    x_T: np.ndarray | None = None,
    start_t: int | None = None,
    sampler: SamplerConfig = ANCESTRAL,
    config: DiffusionConfig | None = None,
    image_shape: tuple[int, int, int] | None = None,
    dtype=torch.float32,
    progress: Callable | None = None,
) -> np.ndarray:
    """Pictures 0 to num_images - 1 of a seed as a NumPy array (N, H, W, C), around [-1, 1], `batch_size` at a time.

    seeds: one picture of each of these seeds instead, its picture 0. x_T: (N, H, W, C), the states to start from
    instead of drawn ones, one picture of each; they are states at the chain's first timestep, or, with start_t, at its
    first one that is at most start_t, where the chain then begins. model: what `load_model` returns, or any module
    (x, t) -> prediction, which needs `config` and `image_shape` (H, W, C). `progress` as in `reverse_process`, per
    batch. Raises UserError for counts below 1, and for shapes and settings that do not fit.
    """
    network, config, image_shape = parts_of(model, config, image_shape)
    require(start_t is None or x_T is not None, "start_t", start_t, "expected x_T besides, the states at that time")
    if x_T is not None:
        x_T = check_images("x_T", x_T, image_shape, numpy_dtype(dtype))
        num_images = len(x_T)
    elif seeds is not None:
        num_images = len(seeds)
    seeds, all_indices = seeds_and_indices(seed, seeds, num_images)

    def draw(indices):
        settings = {"sampler": sampler, "dtype": dtype, "progress": progress, "start_t": start_t}
        states = None if x_T is None else channels_first(x_T[indices], device_of(network))
        of = seeds if np.ndim(seeds) == 0 else [seeds[i] for i in indices]
        return sample_indices(network, config, image_shape, of, all_indices[indices], **settings, x_T=states)[0]

    return in_batches(draw, num_images, batch_size)


def parts_of(
    model: nn.Module, config: DiffusionConfig | None, image_shape: tuple[int, int, int] | None
) -> tuple[nn.Module, DiffusionConfig, tuple[int, int, int] | None]:
    """Network, settings and image shape of what `load_model` returns, or of a bare network and what is given."""
    info = getattr(model, "info", None)
    if info is None:
        return model, config, image_shape
    return model, config or info.diffusion, image_shape or info.image_shape
