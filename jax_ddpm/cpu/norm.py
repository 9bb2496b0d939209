"""GroupNorm and LayerNorm with an order of summation that XLA compiles to fast code on CPUs.

Both can be differentiated once, in reverse mode. With x_hat = (x - mean) * rstd and dx_hat = dy * scale, their gradient
is dx = (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat)) * rstd, with means over the elements that are normalised
together.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.cpu.xla import HIGHEST, batch_sum, cast, no_fusion, pixel_sum


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(x, scale, bias, num_groups: int, epsilon: float):
    """GroupNorm (Wu & He 2018, eq. 1 to 3) of x (B, ..., C), computed in the dtype of scale and bias.

    The result has x's dtype. Sums first over pixels, then over the channels of a group: XLA would compile a sum over
    both to slow loops.
    """
    return group_norm_forward(x, scale, bias, num_groups, epsilon)[0]


def group_norm_forward(x, scale, bias, num_groups, epsilon):
    pixels = x.reshape(len(x), -1, x.shape[-1]).astype(scale.dtype)
    count = pixels.shape[1] * x.shape[-1] // num_groups
    mean = group_sum(pixel_sum(pixels), num_groups)[:, None] / count
    variance = group_sum(pixel_sum(jnp.square(pixels - mean)), num_groups)[:, None] / count
    rstd = lax.rsqrt(variance + epsilon)
    y = (pixels - mean) * (rstd * scale) + bias
    return cast(y, x.dtype).reshape(x.shape), (x, scale, mean, rstd)


def group_norm_backward(num_groups, epsilon, saved, dy):
    x, scale, mean, rstd = saved
    pixels, dy = (a.reshape(len(a), -1, a.shape[-1]).astype(scale.dtype) for a in (x, dy))
    count = pixels.shape[1] * x.shape[-1] // num_groups
    sum_dy = pixel_sum(dy)
    sum_dy_x_hat = pixel_sum(dy * (pixels - mean)) * rstd[:, 0]
    mean_dx_hat = group_sum(sum_dy * scale, num_groups)[:, None] / count
    mean_dx_hat_x_hat = group_sum(sum_dy_x_hat * scale, num_groups)[:, None] / count
    dx = (dy * scale - mean_dx_hat - (pixels - mean) * (rstd * mean_dx_hat_x_hat)) * rstd
    return cast(dx, x.dtype).reshape(x.shape), batch_sum(sum_dy_x_hat), batch_sum(sum_dy)


group_norm.defvjp(group_norm_forward, group_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon: float):
    """LayerNorm (Ba et al. 2016) of x (B, ...) over all axes but the first, computed in the dtype of scale and bias.

    scale and bias have the shape of x without B. The result has x's dtype.
    """
    return layer_norm_forward(x, scale, bias, epsilon)[0]


def layer_norm_forward(x, scale, bias, epsilon):
    def normalise(rows, mean, rstd, scale, bias):
        return cast((rows - mean) * rstd * scale + bias, x.dtype)

    inputs = x.reshape(len(x), -1)
    rows = inputs.astype(scale.dtype)
    mean = row_mean(rows)
    rstd = lax.rsqrt(row_mean(jnp.square(rows - mean)) + epsilon)
    y = no_fusion(normalise, inputs, mean, rstd, scale.ravel(), bias.ravel())
    return y.reshape(x.shape), (x, scale, mean, rstd)


def layer_norm_backward(epsilon, saved, dy):
    x, scale, mean, rstd = saved

    def input_gradient(rows, dy, mean, rstd, scale, mean_dx_hat, mean_dx_hat_x_hat):
        return cast((dy * scale - mean_dx_hat - (rows - mean) * (rstd * mean_dx_hat_x_hat)) * rstd, x.dtype)

    inputs = x.reshape(len(x), -1), dy.reshape(len(x), -1)
    rows, dy = (values.astype(scale.dtype) for values in inputs)
    dx_hat = dy * scale.ravel()
    mean_dx_hat, mean_dx_hat_x_hat = row_mean(dx_hat), row_mean(dx_hat * (rows - mean)) * rstd
    dx = no_fusion(input_gradient, *inputs, mean, rstd, scale.ravel(), mean_dx_hat, mean_dx_hat_x_hat)
    dscale, dbias = (two_stage_sum(values, 0) for values in (dy * (rows - mean) * rstd, dy))
    return dx.reshape(x.shape), dscale.reshape(scale.shape), dbias.reshape(scale.shape)


layer_norm.defvjp(layer_norm_forward, layer_norm_backward)


def row_mean(x):
    """Mean of x (B, N) over N: (B, 1)."""
    return (two_stage_sum(x, 1) / x.shape[1])[:, None]


def two_stage_sum(x, axis: int):
    """Sum of x (M, N) over an axis, in two stages.

    The first stage cuts x into at most 8 equal parts and adds them element by element. XLA fuses it with the producer
    of x, so x itself is never written to memory. The second stage sums the result. It is a matrix product with ones,
    which XLA fuses with nothing.
    """
    size = x.shape[axis]
    count = next(n for n in (8, 4, 2, 1) if size % n == 0)
    part_sum = sum(lax.slice_in_dim(x, i * size // count, (i + 1) * size // count, axis=axis) for i in range(count))
    ones = jnp.ones(size // count, x.dtype)
    return jnp.dot(part_sum, ones, precision=HIGHEST) if axis == 1 else jnp.dot(ones, part_sum, precision=HIGHEST)


def group_sum(x, num_groups: int):
    """Sum of x (B, C) over each group of channels, repeated for every channel of the group: (B, C)."""
    group = jnp.arange(x.shape[1]) * num_groups // x.shape[1]
    return jnp.dot(x, (group[:, None] == group).astype(x.dtype), precision=HIGHEST)
