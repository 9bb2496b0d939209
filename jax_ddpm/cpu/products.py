"""Products of matrices by routes that are fast on CPUs, for `layers`: the same numbers up to rounding.

Differentiable once, in reverse mode.
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
    """x (..., I) @ kernel (I, O), whose gradient XLA would compute from a transposed copy."""
    if onednn.pays(x):
        return onednn.matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
    return jnp.dot(x, kernel, precision=HIGHEST)


def matmul_forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def matmul_backward(saved, g):
    x, kernel = saved
    pixels = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if onednn.pays(x):
        dx = onednn.matmul(pixels[1], kernel, transpose_b=True).reshape(x.shape)
        return dx, onednn.matmul(*pixels, transpose_a=True)
    return jnp.dot(g, kernel.T, precision=HIGHEST), jnp.einsum("pi,po->io", *pixels, precision=HIGHEST)


matmul.defvjp(matmul_forward, matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(equation: str, a, b):
    """jnp.einsum of two arrays: one letter of `equation` is summed, one of each array is its own, others are in all."""
    return product(equation, a, b)


def einsum_forward(equation, a, b):
    return product(equation, a, b), (a, b)


def einsum_backward(equation, saved, g):
    a, b = saved
    of_a, of_b, of_result = re.split(",|->", equation)
    return product(f"{of_result},{of_b}->{of_a}", g, b), product(f"{of_result},{of_a}->{of_b}", g, a)


einsum.defvjp(einsum_forward, einsum_backward)


def product(equation: str, a, b):
    """einsum, as products of matrices by oneDNN where that pays."""
    if not onednn.pays(a):
        return jnp.einsum(equation, a, b, precision=HIGHEST)
    of_a, of_b, of_result = re.split(",|->", equation)
    batch = "".join(letter for letter in of_result if letter in of_a and letter in of_b)
    (summed,) = set(of_a) & set(of_b) - set(of_result)
    (row,), (column,) = set(of_a) - set(batch + summed), set(of_b) - set(batch + summed)
    rows, columns = (batch + "".join(c for c in letters if c not in batch) for letters in (of_a, of_b))
    a, b = jnp.einsum(f"{of_a}->{rows}", a), jnp.einsum(f"{of_b}->{columns}", b)
    y = onednn.matmul(a, b, transpose_a=rows[-2] == summed, transpose_b=columns[-1] == summed)
    return jnp.einsum(f"{batch}{row}{column}->{of_result}", y)
