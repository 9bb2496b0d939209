"""Convolutions in float64 as one matrix product each: XLA's are twenty times slower on CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
from jax.extend.core.primitives import conv_general_dilated_p


@contextmanager
def as_matrix_products() -> Iterator[None]:
    """Context manager: convolutions in float64, outside transformations, are computed by NumPy."""
    original = conv_general_dilated_p.impl
    conv_general_dilated_p.impl = lambda *arrays, **settings: convolve(original, *arrays, **settings)
    try:
        yield
    finally:
        conv_general_dilated_p.impl = original


def convolve(original, lhs, rhs, **settings):
    """`lax.conv_general_dilated` of concrete arrays: of float64 without groups here, else by `original`."""
    has_groups = settings["feature_group_count"] > 1 or settings["batch_group_count"] > 1
    if lhs.dtype != jnp.float64 or rhs.dtype != jnp.float64 or has_groups:
        return original(lhs, rhs, **settings)
    (batch, feature, *space), (out, into, *kernel_space), out_spec = settings["dimension_numbers"]
    x = dilated(np.transpose(np.asarray(lhs), (batch, *space, feature)), settings["lhs_dilation"])
    x = padded(x, settings["padding"])
    kernel = dilated(np.transpose(np.asarray(rhs), (out, *kernel_space, into)), settings["rhs_dilation"])
    size, rank = kernel.shape[1:-1], len(space)
    axes = tuple(range(1, rank + 1))
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axes)  # (B, space, C, kernel's space)
    windows = windows[(slice(None), *(slice(None, None, stride) for stride in settings["window_strides"]))]
    last = tuple(range(rank + 2, 2 * rank + 2))
    patches = np.transpose(windows, (0, *axes, *last, rank + 1)).reshape(*windows.shape[: rank + 1], -1)
    y = patches @ kernel.reshape(len(kernel), -1).T
    out_batch, out_feature, *out_space = out_spec
    order = np.argsort((out_batch, *out_space, out_feature))
    return jnp.asarray(np.transpose(y, order))


def dilated(x: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """x (B, space, C) with steps - 1 zeros between neighbours."""
    if all(step == 1 for step in steps):
        return x
    space = [(size - 1) * step + 1 for size, step in zip(x.shape[1:-1], steps, strict=True)]
    wide = np.zeros((len(x), *space, x.shape[-1]), x.dtype)
    wide[(slice(None), *(slice(None, None, step) for step in steps))] = x
    return wide


def padded(x: np.ndarray, padding: tuple[tuple[int, int], ...]) -> np.ndarray:
    """x (B, space, C) with zeros around; negative padding cuts off."""
    x = np.pad(x, ((0, 0), *((max(low, 0), max(high, 0)) for low, high in padding), (0, 0)))
    cuts = [slice(max(-low, 0), size - max(-high, 0)) for size, (low, high) in zip(x.shape[1:-1], padding, strict=True)]
    return x[(slice(None), *cuts)]
