"""GroupNorm and LayerNorm, summed in the order that XLA's compiler for CPUs makes fast.

Differentiable once, in reverse mode.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.cpu.xla import HIGHEST, batch_sum, no_fusion, pixel_sum, rounded


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(x, scale, bias, num_groups: int, epsilon: float):
    """GroupNorm (Wu & He 2018, eq. 1 to 3) of x (B, ..., C), in float32 or better, as scale and bias are.

    With sums over pixels first, then over a group's channels: XLA would compile both at once into slow loops.
    """
    return group_norm_forward(x, scale, bias, num_groups, epsilon)[0]


def group_norm_forward(x, scale, bias, num_groups, epsilon):
    pixels = x.reshape(len(x), -1, x.shape[-1]).astype(scale.dtype)
    count = pixels.shape[1] * x.shape[-1] // num_groups
    mean = group_sum(pixel_sum(pixels), num_groups)[:, None] / count
    variance = group_sum(pixel_sum(jnp.square(pixels - mean)), num_groups)[:, None] / count
    rstd = lax.rsqrt(variance + epsilon)
    y = (pixels - mean) * (rstd * scale) + bias
    return rounded(y, x.dtype).reshape(x.shape), (x, scale, mean, rstd)


def group_norm_backward(num_groups, epsilon, saved, dy):
    x, scale, mean, rstd = saved
    pixels, dy = (a.reshape(len(a), -1, a.shape[-1]).astype(scale.dtype) for a in (x, dy))
    count = pixels.shape[1] * x.shape[-1] // num_groups
    sum_dy = pixel_sum(dy)
    sum_dy_normal = pixel_sum(dy * (pixels - mean)) * rstd[:, 0]
    a = group_sum(sum_dy * scale, num_groups)[:, None] / count
    b = group_sum(sum_dy_normal * scale, num_groups)[:, None] / count
    dx = (dy * scale - a - (pixels - mean) * (rstd * b)) * rstd
    return rounded(dx, x.dtype).reshape(x.shape), batch_sum(sum_dy_normal), batch_sum(sum_dy)


group_norm.defvjp(group_norm_forward, group_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon: float):
    """LayerNorm (Ba et al. 2016) of x (B, ...) over all axes but the first, in float32 or better, as scale and bias.

    The result has x's dtype.
    """
    return layer_norm_forward(x, scale, bias, epsilon)[0]


def layer_norm_forward(x, scale, bias, epsilon):
    def normalised(rows, mean, rstd, scale, bias):
        return rounded((rows - mean) * rstd * scale + bias, x.dtype)

    given = x.reshape(len(x), -1)
    rows = given.astype(scale.dtype)
    mean = row_mean(rows)
    rstd = lax.rsqrt(row_mean(jnp.square(rows - mean)) + epsilon)
    y = no_fusion(normalised, given, mean, rstd, scale.ravel(), bias.ravel())
    return y.reshape(x.shape), (x, scale, mean, rstd)


def layer_norm_backward(epsilon, saved, dy):
    x, scale, mean, rstd = saved

    def gradient(rows, dy, mean, rstd, scale, a, b):
        return rounded((dy * scale - a - (rows - mean) * (rstd * b)) * rstd, x.dtype)

    given = x.reshape(len(x), -1), dy.reshape(len(x), -1)
    rows, dy = (values.astype(scale.dtype) for values in given)
    dnormal = dy * scale.ravel()
    a, b = row_mean(dnormal), row_mean(dnormal * (rows - mean)) * rstd
    dx = no_fusion(gradient, *given, mean, rstd, scale.ravel(), a, b)
    dscale, dbias = (sum_by_parts(values, 0) for values in (dy * (rows - mean) * rstd, dy))
    return dx.reshape(x.shape), dscale.reshape(scale.shape), dbias.reshape(scale.shape)


layer_norm.defvjp(layer_norm_forward, layer_norm_backward)


def row_mean(x):
    """x (B, N) averaged over N: (B, 1)."""
    return (sum_by_parts(x, 1) / x.shape[1])[:, None]


def sum_by_parts(x, axis: int):
    """x (M, N) summed over an axis: first of its eighths the sum, together with what computes x, then of its numbers.

    The second sum is a product with ones, with which XLA merges no other work: x itself is never written.
    """
    size = x.shape[axis]
    count = next(n for n in (8, 4, 2, 1) if size % n == 0)
    part = sum(lax.slice_in_dim(x, i * size // count, (i + 1) * size // count, axis=axis) for i in range(count))
    ones = jnp.ones(size // count, x.dtype)
    return jnp.dot(part, ones, precision=HIGHEST) if axis == 1 else jnp.dot(ones, part, precision=HIGHEST)


def group_sum(x, num_groups: int):
    """x (B, C) summed within each group of channels, for every channel of the group: (B, C)."""
    group = jnp.arange(x.shape[1]) * num_groups // x.shape[1]
    return jnp.dot(x, (group[:, None] == group).astype(x.dtype), precision=HIGHEST)
