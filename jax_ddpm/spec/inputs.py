"""Checks of the arguments of sampling and editing, for both frameworks. All of them raise UserError."""

import operator
import os
from collections.abc import Sequence

import numpy as np

from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError, require

EXPECTED_MODEL = "expected what load_model returns, the path of a model, or a network of this framework"
EXPECTED_GUIDE = "expected what load_model returns, or the path of a model"


def check_seed(seed: int) -> int:
    """Require an integer in [0, 2^32) and return it."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    require(0 <= number < 2**32, "seed", seed, f"expected an integer from 0 to {2**32 - 1}")
    return number


def check_path(name: str, path, expected: str) -> None:
    """Require a text or a path."""
    require(isinstance(path, str | os.PathLike), name, repr(path), expected)


def check_count(name: str, value) -> None:
    """Require an integer of at least 1."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(is_integer, name, repr(value), "expected an integer")
    require(value >= 1, name, value, "expected at least 1")


def seeds_and_indices(
    seed: int, seeds: Sequence[int] | None, num_images: int
) -> tuple[int | Sequence[int], np.ndarray]:
    """`seed` and the indices 0 to N - 1, or, if `seeds` is given, these N seeds and N zeros. N = num_images."""
    check_count("num_images", num_images)
    if seeds is None:
        return seed, np.arange(num_images)
    require(len(seeds) == num_images, "number of seeds", len(seeds), f"expected {num_images}, one for each image")
    return seeds, np.zeros(num_images, int)


def check_images(name: str, images, image_shape: tuple[int, int, int] | None, dtype) -> np.ndarray:
    """Require finite floats (N, *image_shape), N at least 1, and return them as `dtype`. image_shape None: any."""
    images = np.asarray(images)
    wanted = ("N", "H", "W", "C") if image_shape is None else ("N", *image_shape)
    fits = images.ndim == 4 and len(images) and (image_shape is None or images.shape[1:] == tuple(image_shape))
    require(fits, name, images.shape, f"expected the shape ({', '.join(map(str, wanted))})")
    require(images.dtype.kind == "f", name, images.dtype, "expected floating point (images in [-1, 1])")
    require(np.isfinite(images).all(), name, "nan or inf", "expected finite numbers")
    return images.astype(dtype)


def check_mask(mask, images: np.ndarray) -> np.ndarray:
    """Require a mask with the height and width of the images (N, H, W, C) and return mask != 0: bool (H, W)."""
    mask = np.asarray(mask)
    require(mask.shape == images.shape[1:3], "mask", mask.shape, f"expected the images' shape, {images.shape[1:3]}")
    return mask != 0


def check_draws_no_noise(sampler: SamplerConfig) -> None:
    """Require a sampler whose images depend on x_T only."""
    if not sampler.is_deterministic:
        raise UserError(
            f"sampler = {sampler.sampler}, eta = {sampler.eta}: it adds noise, so x_T alone does not decide the image. "
            "To interpolate, use a sampler without noise, such as ddim (--sampler ddim)."
        )


def check_invertible(sampler: SamplerConfig) -> None:
    """Require ddim without noise."""
    if sampler.sampler != "ddim" or sampler.eta != 0:
        raise UserError(
            f"sampler = {sampler.sampler}, eta = {sampler.eta}: only ddim with eta = 0 can be inverted. Use ddim "
            "(--sampler ddim)."
        )


def check_ancestral(sampler: SamplerConfig) -> None:
    """Require the sampler that inpainting needs."""
    if sampler.sampler != "ddpm":
        raise UserError(f"sampler = {sampler.sampler}: inpainting needs ancestral steps. Use ddpm (--sampler ddpm).")
