"""Which images are in which batch. This depends only on (seed, step), so a resumed run gets the same batches."""

from functools import lru_cache

import numpy as np

from jax_ddpm.spec.errors import UserError


def batch_indices(seed: int, step: int, num_images: int, batch_size: int) -> np.ndarray:
    """Indices of the images in batch number `step` of a seed.

    Each epoch is a new permutation of all images, cut into `num_images // batch_size` batches; the incomplete last
    batch is dropped.

    Args:
        seed: 0 or more.
        step: 0 is the first batch of the first epoch.
        num_images: number of training images.
        batch_size: at least 1, at most `num_images`.

    Returns:
        int32 (batch_size,), each in [0, num_images), no two equal.

    Raises:
        UserError: the batch is empty, or larger than the data set.
    """
    if not 1 <= batch_size <= num_images:
        raise UserError(
            f"batch size {batch_size} does not fit {num_images} training images.\n"
            f"Expected 1 to {num_images}: give another --batch-size, or more images."
        )
    epoch, batch = divmod(step, num_images // batch_size)
    return _permutation(seed, epoch, num_images)[batch * batch_size : (batch + 1) * batch_size].copy()


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images).astype(np.int32)
