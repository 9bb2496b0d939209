"""GroupNorm and LayerNorm, summed in the order that XLA's compiler for CPUs makes fast.

Differentiable once, in reverse mode.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.cpu import HIGHEST, apart, batch_sum, pixel_sum


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
    return y.astype(x.dtype).reshape(x.shape), (x, scale, mean, rstd)


def group_norm_backward(num_groups, epsilon, saved, dy):
    x, scale, mean, rstd = saved
    pixels, dy = (a.reshape(len(a), -1, a.shape[-1]).astype(scale.dtype) for a in (x, dy))
    count = pixels.shape[1] * x.shape[-1] // num_groups
    sum_dy = pixel_sum(dy)
    sum_dy_normal = pixel_sum(dy * (pixels - mean)) * rstd[:, 0]
    a = group_sum(sum_dy * scale, num_groups)[:, None] / count
    b = group_sum(sum_dy_normal * scale, num_groups)[:, None] / count
    dx = (dy * scale - a - (pixels - mean) * (rstd * b)) * rstd
    return dx.astype(x.dtype).reshape(x.shape), batch_sum(sum_dy_normal), batch_sum(sum_dy)


group_norm.defvjp(group_norm_forward, group_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon: float):
    """LayerNorm (Ba et al. 2016) of x (B, ...) over all axes but the first, in rows."""
    return layer_norm_forward(x, scale, bias, epsilon)[0]


def layer_norm_forward(x, scale, bias, epsilon):
    def normalised(rows, scale, bias):
        mean = row_mean(rows)
        rstd = lax.rsqrt(row_mean(jnp.square(rows - mean)) + epsilon)
        return (rows - mean) * rstd * scale + bias

    rows = x.reshape(len(x), -1)
    return apart(normalised, rows, scale.ravel(), bias.ravel()).reshape(x.shape), (x, scale)


def layer_norm_backward(epsilon, saved, dy):
    x, scale = saved

    def gradients(rows, scale, dy):
        mean = row_mean(rows)
        rstd = lax.rsqrt(row_mean(jnp.square(rows - mean)) + epsilon)
        normal = (rows - mean) * rstd
        dnormal = dy * scale
        dx = (dnormal - row_mean(dnormal) - normal * row_mean(dnormal * normal)) * rstd
        return dx, batch_sum(dy * normal), batch_sum(dy)

    dx, dscale, dbias = apart(gradients, x.reshape(len(x), -1), scale.ravel(), dy.reshape(len(x), -1))
    return dx.reshape(x.shape), dscale.reshape(scale.shape), dbias.reshape(scale.shape)


layer_norm.defvjp(layer_norm_forward, layer_norm_backward)


def row_mean(x):
    """x (B, N) averaged over N: (B, 1)."""
    return (jnp.dot(x, jnp.ones(x.shape[1], x.dtype), precision=HIGHEST) / x.shape[1])[:, None]


def group_sum(x, num_groups: int):
    """x (B, C) summed within each group of channels, for every channel of the group: (B, C)."""
    group = jnp.arange(x.shape[1]) * num_groups // x.shape[1]
    return jnp.dot(x, (group[:, None] == group).astype(x.dtype), precision=HIGHEST)
