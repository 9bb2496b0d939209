"""The pattern of a difference over channels and space, for causes that no hypothesis names."""

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import number


def pattern(theirs: np.ndarray, ours: np.ndarray) -> str:
    """A sentence about where and how `ours` differs from `theirs`. Images are (B, C, H, W)."""
    if theirs.shape != ours.shape:
        return f"The shapes differ: ours is {ours.shape}, theirs {theirs.shape}, in their layout."
    if not np.isfinite(ours).all():
        share = 1 - np.isfinite(ours).mean()
        return f"{share:.1%} of our numbers are not finite."
    wrong = np.abs(ours - theirs)
    size = max(np.abs(theirs).max(initial=0), 1e-30)
    if not wrong.any():
        return "The arrays are equal."
    limit = max(1e-3 * wrong.max(), 1e-12 * size)
    return proportional(theirs, ours, size) or permuted(theirs, ours, size) or located(wrong > limit)


def proportional(theirs: np.ndarray, ours: np.ndarray, size: float) -> str | None:
    """One factor or one offset for all, or one for each channel."""
    total = float(np.sum(theirs * theirs))
    factor = float(np.sum(theirs * ours)) / total if total else 0.0
    if np.abs(factor * theirs - ours).max() < 1e-6 * size:
        return f"Ours is theirs times {number(factor)} everywhere."
    offset = float(np.mean(ours - theirs))
    if np.abs(theirs + offset - ours).max() < 1e-6 * size:
        return f"Ours is theirs plus {number(offset)} everywhere."
    if theirs.ndim < 2:
        return None
    axis = 1 if theirs.ndim == 4 else theirs.ndim - 1
    others = tuple(k for k in range(theirs.ndim) if k != axis)
    difference = (ours - theirs).mean(others, keepdims=True)
    if np.abs(theirs + difference - ours).max() < 1e-6 * size:
        return "Ours is theirs plus a constant for each channel: a bias or a vector that is added differs."
    with np.errstate(all="ignore"):
        factors = (ours * theirs).sum(others, keepdims=True) / np.square(theirs).sum(others, keepdims=True)
    if np.isfinite(factors).all() and np.abs(theirs * factors - ours).max() < 1e-6 * size:
        return "Ours is theirs times a factor for each channel: a scale differs."
    return None


def permuted(theirs: np.ndarray, ours: np.ndarray, size: float) -> str | None:
    """The same channels in another order, found by matching columns; or the same numbers in another order."""
    if theirs.ndim > 1:
        axis = 1 if theirs.ndim == 4 else theirs.ndim - 1
        a, b = (np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for v in (theirs, ours))
        if a.shape[0] <= 4096:
            order = [int(np.argmin(np.abs(a[:, :4096] - column[:4096]).max(1))) for column in b]
            if sorted(order) == list(range(len(a))) and np.abs(a[order] - b).max() < 1e-6 * size:
                shown = ", ".join(map(str, order[:12])) + (", ..." if len(order) > 12 else "")
                return f"Ours has the channels of theirs in another order: {shown}."
    if np.abs(np.sort(theirs, axis=None) - np.sort(ours, axis=None)).max() < 1e-9 * size:
        return "Ours has the same numbers as theirs at other places: axes or positions are in another order."
    return None


def located(wrong: np.ndarray) -> str:
    """Where the difference is: an edge, some channels, some images, everywhere."""
    if wrong.ndim == 4:
        rows, columns = wrong.any((0, 1, 3)), wrong.any((0, 1, 2))
        inner = wrong[:, :, 1:-1, 1:-1]
        if not inner.any() and min(wrong.shape[2:]) > 2:
            edges = {"top": rows[0], "bottom": rows[-1], "left": columns[0], "right": columns[-1]}
            sides = [side for side, values in zip(edges, sides_of(wrong), strict=True) if values]
            return f"Only an edge of one pixel differs ({', '.join(sides)}): look at the padding."
        channels = wrong.any((0, 2, 3))
    elif wrong.ndim > 1:
        channels = wrong.any(tuple(range(wrong.ndim - 1)))
    else:
        channels = np.array([True])
    if not channels.all():
        numbers = np.flatnonzero(channels)
        shown = ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
        return f"Only {len(numbers)} of {len(channels)} channels differ: {shown}."
    images = wrong.reshape(len(wrong), -1).any(1)
    if not images.all():
        return f"Only {images.sum()} of {len(images)} entries of the batch differ."
    share = wrong.mean()
    return f"{share:.0%} of the numbers differ, in every channel and image, at no particular place."


def sides_of(wrong: np.ndarray) -> list[bool]:
    """Whether top, bottom, left and right edges differ, corners left out."""
    inner = slice(1, -1)
    return [
        bool(wrong[:, :, 0, inner].any()),
        bool(wrong[:, :, -1, inner].any()),
        bool(wrong[:, :, inner, 0].any()),
        bool(wrong[:, :, inner, -1].any()),
    ]
