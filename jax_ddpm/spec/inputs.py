"""Checks of what callers give to sampling and editing, the same in both frameworks. All raise UserError."""

import operator
from collections.abc import Sequence

import numpy as np

from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError, require


def check_seed(seed: int) -> int:
    """The seed itself, which must be an integer in [0, 2^32)."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    require(0 <= number < 2**32, "seed", seed, f"expected an integer from 0 to {2**32 - 1}")
    return number


def seeds_and_indices(
    seed: int, seeds: Sequence[int] | None, num_images: int
) -> tuple[int | Sequence[int], np.ndarray]:
    """Images 0 to num_images - 1 of `seed`, or image 0 of each of `seeds`: the seed or seeds, and the indices (N,)."""
    if seeds is None:
        return seed, np.arange(num_images)
    require(len(seeds) == num_images, "seeds", f"{len(seeds)} of them", f"expected {num_images}, one for each image")
    return seeds, np.zeros(num_images, int)


def check_images(name: str, images, image_shape: tuple[int, int, int] | None, dtype) -> np.ndarray:
    """Images or states as an array of `dtype`. They must be finite floats (N, *image_shape), N at least 1."""
    images = np.asarray(images)
    wanted = ("N", "H", "W", "C") if image_shape is None else ("N", *image_shape)
    fits = images.ndim == 4 and len(images) and (image_shape is None or images.shape[1:] == tuple(image_shape))
    require(fits, name, images.shape, f"expected the shape ({', '.join(map(str, wanted))})")
    require(images.dtype.kind == "f", name, images.dtype, "expected floating point, images within [-1, 1]")
    require(np.isfinite(images).all(), name, "nan or inf", "expected finite numbers")
    return images.astype(dtype)


def check_mask(mask, images: np.ndarray) -> np.ndarray:
    """Where pixels are known, bool (H, W): where the mask is not 0. It must have the height and width of the images."""
    mask = np.asarray(mask)
    require(mask.shape == images.shape[1:3], "mask", mask.shape, f"expected the images' shape, {images.shape[1:3]}")
    return mask != 0


def check_draws_no_noise(sampler: SamplerConfig) -> None:
    """For interpolation: x_T alone must decide the image."""
    if not sampler.is_deterministic:
        raise UserError(
            f"sampler = {sampler.sampler}, eta = {sampler.eta}: its noise decides the picture besides x_T. "
            "To interpolate, use a sampler without noise: --sampler ddim."
        )


def check_invertible(sampler: SamplerConfig) -> None:
    if sampler.sampler != "ddim" or sampler.eta != 0:
        raise UserError(
            f"sampler = {sampler.sampler}, eta = {sampler.eta}: only ddim with eta = 0 is inverted. Use --sampler ddim."
        )


def check_ancestral(sampler: SamplerConfig) -> None:
    """For inpainting."""
    if sampler.sampler != "ddpm":
        raise UserError(f"sampler = {sampler.sampler}: inpainting takes ancestral steps. Use --sampler ddpm.")
