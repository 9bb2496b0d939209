"""Which states of a reverse process to show, and which training images are nearest to a sample."""

import numpy as np

CHUNK = 2048  # images compared at a time


def evenly_spaced(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` entries of a monotonic array whose values are nearest to evenly spaced ones.

    Increasing, without repetition; first and last are among them where count > 1. With the logSNR of the states of a
    reverse process: those between which the picture changes alike.
    """
    values = np.asarray(values, np.float64)
    targets = np.linspace(values[0], values[-1], count)
    return np.unique(np.abs(values[None] - targets[:, None]).argmin(axis=1))


def nearest(samples: np.ndarray, images: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The `count` images nearest to each sample, uint8 (N, H, W, C) and (M, H, W, C), by pixel distance.

    Returns their indices, int (N, min(count, M)), nearest first, and the distances: the root of the mean squared
    difference of the pixels, in levels from 0 (equal) to 255.
    """
    a = samples.reshape(len(samples), -1).astype(np.float64)
    squares = []
    for first in range(0, len(images), CHUNK):
        b = np.asarray(images[first : first + CHUNK]).reshape(-1, a.shape[1]).astype(np.float64)
        squares.append((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T)  # exact: integers below 2^53
    square = np.concatenate(squares, axis=1)
    indices = np.argsort(square, axis=1, kind="stable")[:, :count]
    return indices, np.sqrt(np.take_along_axis(square, indices, axis=1) / a.shape[1])
