"""Matrix products by the fastest method for a CPU. Results are equal up to rounding.

Both functions can be differentiated once, in reverse mode.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.cpu import onednn

HIGHEST = lax.Precision.HIGHEST


@jax.custom_vjp
def matmul(x, kernel):
    """x (..., I) @ kernel (I, O).

    Has a custom gradient: in JAX's gradient with respect to the kernel, XLA would first copy x in transposed order.
    """
    if onednn.is_faster(x):
        return onednn.matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
    return jnp.dot(x, kernel, precision=HIGHEST)


def matmul_forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def matmul_backward(saved, g):
    x, kernel = saved
    pixels = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if onednn.is_faster(x):
        dx = onednn.matmul(pixels[1], kernel, transpose_b=True).reshape(x.shape)
        return dx, onednn.matmul(*pixels, transpose_a=True)
    return jnp.dot(g, kernel.T, precision=HIGHEST), jnp.einsum("pi,po->io", *pixels, precision=HIGHEST)


matmul.defvjp(matmul_forward, matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(equation: str, a, b):
    """jnp.einsum of two arrays. `equation` must be a batched matrix product, such as "bqhd,bkhd->bhqk".

    One index is summed, one is in `a` and the result only, one in `b` and the result only. All others are in all three.
    """
    return batched_matmul(equation, a, b)


def einsum_forward(equation, a, b):
    return batched_matmul(equation, a, b), (a, b)


def einsum_backward(equation, saved, g):
    a, b = saved
    a_axes, b_axes, result_axes = re.split(",|->", equation)
    da = batched_matmul(f"{result_axes},{b_axes}->{a_axes}", g, b)
    return da, batched_matmul(f"{result_axes},{a_axes}->{b_axes}", g, a)


einsum.defvjp(einsum_forward, einsum_backward)


def batched_matmul(equation: str, a, b):
    """einsum, by oneDNN where that is faster."""
    if not onednn.is_faster(a):
        return jnp.einsum(equation, a, b, precision=HIGHEST)
    a_axes, b_axes, result_axes = re.split(",|->", equation)
    batch = "".join(axis for axis in result_axes if axis in a_axes and axis in b_axes)
    (summed,) = set(a_axes) & set(b_axes) - set(result_axes)
    (row,), (column,) = set(a_axes) - set(batch + summed), set(b_axes) - set(batch + summed)
    a_matrices, b_matrices = (batch + "".join(axis for axis in axes if axis not in batch) for axes in (a_axes, b_axes))
    a, b = jnp.einsum(f"{a_axes}->{a_matrices}", a), jnp.einsum(f"{b_axes}->{b_matrices}", b)
    y = onednn.matmul(a, b, transpose_a=a_matrices[-2] == summed, transpose_b=b_matrices[-1] == summed)
    return jnp.einsum(f"{batch}{row}{column}->{result_axes}", y)
