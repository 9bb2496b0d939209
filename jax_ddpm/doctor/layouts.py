"""Which axes of an array of theirs are which of ours: the candidates, and the choice by values."""

import itertools
import math
from collections import Counter

import numpy as np

from jax_ddpm.doctor.records import Axes, relative_error

CLOSE = 1e-3  # below this relative error two arrays are taken for the same array

# Activations: what frameworks and networks do with channels, pixels, tokens and the batch; the likeliest first.
ACTIVATIONS = {
    3: ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0)),
    4: ((0, 2, 3, 1), (0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 1, 3)),
    5: ((0, 2, 3, 4, 1), (0, 1, 2, 3, 4), (0, 4, 1, 2, 3)),
}
# Parameters: (out, in) to (in, out); OIHW or IOHW to HWIO.
PARAMETERS = {
    2: ((1, 0), (0, 1)),
    3: ((2, 1, 0), (2, 0, 1), (0, 1, 2)),
    4: ((2, 3, 1, 0), (2, 3, 0, 1), (0, 1, 2, 3)),
    5: ((2, 3, 4, 1, 0), (2, 3, 4, 0, 1), (0, 1, 2, 3, 4)),
}


def activation_axes(theirs: tuple[int, ...], ours: tuple[int, ...]) -> list[Axes]:
    """Every usual way in which an activation of theirs can have our shape."""
    return fitting(ACTIVATIONS.get(len(theirs), ()), theirs, ours)


def parameter_axes(theirs: tuple[int, ...], ours: tuple[int, ...]) -> list[Axes]:
    """Every way in which a parameter of theirs can have our shape, the usual ones first."""
    return fitting((*PARAMETERS.get(len(theirs), ()), *itertools.permutations(range(len(theirs)))), theirs, ours)


def fitting(permutations, theirs: tuple[int, ...], ours: tuple[int, ...]) -> list[Axes]:
    if math.prod(theirs) != math.prod(ours):
        return []
    found = []
    for permutation in dict.fromkeys((*permutations, tuple(range(len(theirs))))):
        moved = tuple(theirs[axis] for axis in permutation)
        if moved == ours or (len(theirs) != len(ours) and merges(moved, ours)):
            found.append(Axes(permutation, theirs, ours))
    return found


def merges(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether one of two shapes becomes the other by merging neighbouring axes."""
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    rest = list(long)
    for size in short:
        product = 1
        while rest and (product < size or (product == size and rest[0] == 1)):
            product *= rest.pop(0)
        if product != size:
            return False
    return all(size == 1 for size in rest)


class LayoutVotes:
    """Chooses axes by values, and where values do not tell, as they were chosen before."""

    def __init__(self):
        self.votes: Counter = Counter()

    def choose(self, theirs: np.ndarray, ours: np.ndarray, prefer: tuple[int, ...] | None = None) -> tuple[Axes, float]:
        """Axes, and the relative error that remains. With shapes that do not fit, the error is infinite.

        prefer: the permutation to take where values do not tell.
        """
        candidates = activation_axes(theirs.shape, ours.shape)
        errors = {axes: relative_error(ours, axes.to_ours(theirs)) for axes in candidates}
        best = min(errors, key=errors.get, default=None)
        if best is not None and errors[best] < CLOSE:
            self.votes[best.permutation, ours.ndim] += 1
            return best, errors[best]
        if best is None:
            return self.unfitting(theirs.shape, ours.ndim, prefer), math.inf
        usual = max(candidates, key=lambda axes: (axes.permutation == prefer, self.votes[axes.permutation, ours.ndim]))
        return usual, errors[usual]

    def unfitting(self, shape: tuple[int, ...], our_ndim: int, prefer: tuple[int, ...] | None) -> Axes:
        """The usual axes of arrays of this rank, for an array that has another shape than ours."""
        known = [p for (p, ndim), _ in self.votes.most_common() if len(p) == len(shape) and ndim == our_ndim == len(p)]
        if prefer is not None and len(prefer) == len(shape):
            known.insert(0, prefer)
        permutation = (*known, *ACTIVATIONS.get(len(shape), ()), tuple(range(len(shape))))[0]
        return Axes(permutation, shape, tuple(shape[axis] for axis in permutation))
