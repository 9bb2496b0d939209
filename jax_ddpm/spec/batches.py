"""Draw images in batches, and in smaller ones if the device runs out of memory."""

import warnings
from collections.abc import Callable

import numpy as np

from jax_ddpm.spec.errors import require


def in_batches(
    draw: Callable[[np.ndarray], np.ndarray],
    num_images: int,
    batch_size: int,
    memory_error: type[Exception],
    error_text: str = "",
    num_devices: int = 1,
) -> np.ndarray:
    """draw(indices) for the indices 0 to num_images - 1, `batch_size` at a time: one array of num_images.

    The last batch is padded with its last index to the size of the others, and the extra images are dropped. After a
    `memory_error` with `error_text` in its message the batch size is halved, if possible to a multiple of
    `num_devices`. Raises UserError for counts below 1.
    """
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        require(value >= 1, name, value, "expected at least 1")
    batch_size = min(batch_size, num_images)
    first, parts = 0, []
    while first < num_images:
        indices = np.minimum(np.arange(first, first + batch_size), num_images - 1)
        try:
            parts.append(draw(indices))
            first += batch_size
        except memory_error as error:
            if batch_size == 1 or error_text not in str(error):
                raise
            half = batch_size // 2
            half = half - half % num_devices or half
            text = f"The device has not enough memory for {batch_size} images at a time: continuing with {half}."
            warnings.warn(text, stacklevel=4)
            batch_size = half
    return np.concatenate(parts)[:num_images]
