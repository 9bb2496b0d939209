"""The same numbers at other places: axes swapped or reversed, channels in another order, a picture that is shifted."""

from collections.abc import Iterator

import numpy as np

from jax_ddpm.doctor.causes.expression import Node, Variant, view
from jax_ddpm.doctor.causes.hypothesis import divisors


def rolled_channels(tree: Node, ours: np.ndarray) -> Iterator[Variant]:
    """The first channels of theirs are the last ones of ours: two arrays are joined the other way round."""
    theirs = tree.value
    if theirs.shape != ours.shape or theirs.ndim < 2:
        return
    axis = 1 if theirs.ndim == 4 else theirs.ndim - 1
    first = np.take(theirs, 0, axis)
    limit = 1e-6 * max(np.abs(theirs).max(), 1e-30)
    for k in range(1, theirs.shape[axis]):
        if np.abs(np.take(ours, k, axis) - first).max() <= limit:
            n = theirs.shape[axis] - k
            says = f"ours joins two arrays the other way round: its first {k} channels are the last of theirs"
            order = np.roll(np.arange(n + k), k)
            joined = view("rolled", "{0}", "{0}", lambda v, order=order: np.take(v, order, axis), tree)
            yield Variant("concatenation_order", says, joined, "Swap the two arrays in jnp.concatenate.")


def moved(tree: Node) -> Iterator[Variant]:
    """The whole array with its axes swapped, reversed or its channels in another order."""
    shape = tree.value.shape
    options = []
    if len(shape) == 4:
        options += [
            ("height_width_swapped", "height and width are swapped in ours", lambda v: v.mT),
            ("image_flipped", "ours is flipped from left to right", lambda v: v[..., ::-1]),
            ("image_flipped", "ours is flipped from top to bottom", lambda v: v[..., ::-1, :]),
            ("image_flipped", "ours is rotated by 180 degrees", lambda v: v[..., ::-1, ::-1]),
            ("axes_order", "ours is reshaped from NHWC to NCHW without moving the axes", unmoved),
            ("axes_order", "ours is reshaped from NCHW to NHWC without moving the axes", unmoved_back),
        ]
        for rows, columns in ((1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1)):
            says = f"ours is shifted by {rows} rows and {columns} columns, round the edges"
            options.append(("image_shifted", says, lambda v, by=(rows, columns): np.roll(v, by, (2, 3))))
    if len(shape) == 3:
        options.append(("axes_order", "the last two axes are swapped in ours", lambda v: v.mT))
    if len(shape) > 1:
        axis = 1 if len(shape) == 4 else len(shape) - 1
        c = shape[axis]
        options.append(("channels_permuted", "the channels are in reverse order in ours", lambda v: np.flip(v, axis)))
        for g in divisors(c)[1:-1]:
            says = f"the channels of ours are regrouped from {g} x {c // g} to {c // g} x {g}"
            order = np.arange(c).reshape(g, c // g).T.ravel()
            options.append(("channels_permuted", says, lambda v, order=order: np.take(v, order, axis)))
    for name, says, function in options:
        yield Variant(name, says, view(name, "{0}", "{0}", function, tree))


def unmoved(v: np.ndarray) -> np.ndarray:
    b, c, h, w = v.shape
    return v.transpose(0, 2, 3, 1).reshape(b, c, h, w)


def unmoved_back(v: np.ndarray) -> np.ndarray:
    b, c, h, w = v.shape
    return v.reshape(b, h, w, c).transpose(0, 3, 1, 2)
