"""Which images are held out for validation."""

import numpy as np

DEFAULT_FRACTION = 0.1  # if the data set has no validation images of its own
MIN_IMAGES_TO_SPLIT = 10  # fewer are all used for training, unless the user gives a fraction
SPLIT_SEED = 20200619  # independent of the run's seed, so that every run holds out the same images


def split(count: int, fraction: float | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Hold out some of `count` images, the same ones in every run.

    Args:
        count: number of images.
        fraction: the fraction to hold out, in [0, 1). None: a tenth, or none of less than MIN_IMAGES_TO_SPLIT.

    Returns:
        Rows of the training images, rows of the held-out images (both increasing, int64), and a note for the user.
    """
    rows = np.arange(count)
    if fraction == 0:
        return rows, rows[:0], "validation: none"
    if count < 2 or (fraction is None and count < MIN_IMAGES_TO_SPLIT):
        return rows, rows[:0], f"validation: none, {count} images are too few"
    fraction = DEFAULT_FRACTION if fraction is None else fraction
    number = min(max(1, round(count * fraction)), count - 1)
    held_out = np.zeros(count, bool)
    held_out[np.random.default_rng(SPLIT_SEED).permutation(count)[:number]] = True
    note = f"validation: {number:,} of {count:,} images held out, the same ones in every run"
    return np.flatnonzero(~held_out), np.flatnonzero(held_out), note
