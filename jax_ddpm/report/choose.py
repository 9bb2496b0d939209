"""Selects the states of a reverse process to show, and the training images nearest to a sample."""

import numpy as np

IMAGES_PER_CHUNK = 2048  # training images compared at a time, to limit memory


def evenly_spaced(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` entries whose values are nearest to `count` evenly spaced values.

    If `values` are the logSNR of the states of a reverse process, the image changes by similar amounts from one chosen
    state to the next.

    Args:
        values: a monotonic array (N,).
        count: number of evenly spaced values from the first to the last entry; at least 1.

    Returns:
        int (K,), K <= count, increasing. The first and the last index are included if count > 1.
    """
    values = np.asarray(values, np.float64)
    targets = np.linspace(values[0], values[-1], count)
    return np.unique(np.abs(values[None] - targets[:, None]).argmin(axis=1))


def nearest(samples: np.ndarray, images: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The images nearest to each sample, by pixel distance.

    Args:
        samples: uint8 (N, H, W, C).
        images: uint8 (M, H, W, C), for example the training images; may be a memory map.
        count: number of images per sample.

    Returns:
        (indices, distances), int and float64, both (N, min(count, M)), nearest first. A distance is the
        root-mean-square difference of the pixels, from 0 (equal) to 255.
    """
    a = samples.reshape(len(samples), -1).astype(np.float64)
    squares = []
    for first in range(0, len(images), IMAGES_PER_CHUNK):
        b = np.asarray(images[first : first + IMAGES_PER_CHUNK]).reshape(-1, a.shape[1]).astype(np.float64)
        squares.append((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T)  # exact: integers below 2^53
    square = np.concatenate(squares, axis=1)
    indices = np.argsort(square, axis=1, kind="stable")[:, :count]
    return indices, np.sqrt(np.take_along_axis(square, indices, axis=1) / a.shape[1])
