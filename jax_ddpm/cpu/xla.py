"""Layers rewritten where XLA's compiler for CPUs is slow: the same numbers up to rounding, other orders of summation.

`layers` takes these routes on CPUs only; on GPUs and TPUs XLA's own is best. Those with gradients of their own are
differentiable once, in reverse mode.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.arrays import upcast

HIGHEST = lax.Precision.HIGHEST
LARGE = 1 << 17  # numbers; of fewer, sums and activations are quick anyhow


def rounded(x, dtype):
    """x in this dtype; of float32 in bfloat16 by shifting its bits: XLA's own conversion takes twice as long.

    That has no gradient, and would make a signalling NaN, which no arithmetic results in, infinite.
    """
    if dtype != jnp.bfloat16 or x.dtype != jnp.float32:
        return x.astype(dtype)
    bits = lax.bitcast_convert_type(lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7), jnp.uint32)
    return lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), dtype)


@jax.custom_vjp
def add_to_pixels(x, vectors):
    """x (B, ..., W, C) + vectors (B, C), whose gradient XLA would compute together with its neighbours in slow loops.

    Where XLA's loops over a few channels would be slow, a row of pixels at once.
    """

    def added(x, vectors):
        return rounded(upcast(x) + jnp.expand_dims(upcast(vectors), tuple(range(1, x.ndim - 1))), x.dtype)

    if x.shape[-1] % 16 == 0:
        return added(x, vectors)
    columns = x.shape[-2]
    rows = x.reshape(*x.shape[:-2], columns * x.shape[-1])
    return no_fusion(added, rows, jnp.tile(vectors, (1, columns))).reshape(x.shape)


def add_to_pixels_backward(vectors, g):
    return g, image_sum(g).astype(vectors.dtype)


add_to_pixels.defvjp(lambda x, vectors: (add_to_pixels(x, vectors), vectors), add_to_pixels_backward)


@jax.custom_vjp
def add_bias(x, bias):
    """x (B, ..., C) + bias (C,)."""
    return x + bias


def add_bias_backward(bias, g):
    return g, batch_sum(image_sum(g)).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), add_bias_backward)


@jax.custom_vjp
def silu(x):
    """SiLU of x (..., C), in float32 or better; in bfloat16 XLA would round every number on the way.

    Where no gradient needs it, nor rounding, of 16 n channels together with what computes x.
    """
    together = upcast(x).dtype == x.dtype and x.shape[-1] % 16 == 0
    return jax.nn.silu(x) if together else of_numbers(jax.nn.silu, x)


def silu_forward(x):
    return of_numbers(jax.nn.silu, x), x


def silu_backward(x, g):
    return (of_numbers(lambda x, g: jax.vjp(jax.nn.silu, x)[1](g)[0], x, g),)


silu.defvjp(silu_forward, silu_backward)


@jax.custom_vjp
def max_pool_2x2(x):
    """The first of the largest of each 2x2 block, its gradient in one pass; XLA's own would be slow in bfloat16."""
    return max_pool_forward(x)[0]


def max_pool_forward(x):
    b, h, w, c = x.shape
    left, right = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(4, 0, 1, 2, 3, 5)
    to_right = larger(right, left)
    top, bottom = jnp.where(to_right, right, left).transpose(2, 0, 1, 3, 4)
    to_bottom = larger(bottom, top)
    place = 2 * to_bottom + jnp.where(to_bottom, to_right[:, :, 1], to_right[:, :, 0])  # 0 to 3, in a block's order
    return jnp.where(to_bottom, bottom, top), place.astype(jnp.int8)


def max_pool_backward(place, g):
    b, h, w, c = g.shape
    chosen = place[:, :, None, :, None] == jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
    return (jnp.where(chosen, g[:, :, None, :, None], 0).reshape(b, 2 * h, 2 * w, c),)


max_pool_2x2.defvjp(max_pool_forward, max_pool_backward)


@jax.custom_vjp
def concatenate_channels(*arrays):
    """Arrays (B, H, W, C_i) side by side: (B, H, W, sum of C_i)."""
    dtype = arrays[0].dtype
    if dtype != jnp.bfloat16:
        return jnp.concatenate(arrays, axis=-1)
    as_integers = [lax.bitcast_convert_type(a, jnp.uint16) for a in arrays]  # XLA would go by way of float32
    return lax.bitcast_convert_type(jnp.concatenate(as_integers, axis=-1), dtype)


def concatenate_forward(*arrays):
    return concatenate_channels(*arrays), [a.shape[-1] for a in arrays]


def concatenate_backward(channels, g):
    ends = list(itertools.accumulate(channels))
    return tuple(g[..., end - c : end] for c, end in zip(channels, ends, strict=True))


concatenate_channels.defvjp(concatenate_forward, concatenate_backward)


def larger(a, b):
    """Where a is to be chosen, coming after b: NaN is larger than any number."""
    return (a > b) | (a != a)


def image_sum(x):
    """x (B, ..., C) summed over pixels, in float32 or better: (B, C)."""
    return pixel_sum(upcast(x.reshape(len(x), -1, x.shape[-1])))


def of_numbers(function, *arrays):
    """function of each number in float32 or better, of large arrays once: XLA would compute it anew for each reader.

    In one row where XLA's loops over a few channels would be slow.
    """
    shape, dtype = arrays[0].shape, arrays[0].dtype

    def result(*arrays):
        return rounded(function(*map(upcast, arrays)), dtype)

    if shape[-1] % 16 != 0:
        return no_fusion(result, *(a.ravel() for a in arrays)).reshape(shape)
    return result(*arrays) if arrays[0].size < LARGE else no_fusion(result, *arrays)


def no_fusion(function, *arrays):
    """function(*arrays), kept from being merged with its neighbours by standing in a branch, which is always taken."""
    result = jax.eval_shape(function, *arrays)
    never = arrays[0].ravel()[0] > jnp.inf  # XLA does not see that
    return lax.cond(never, lambda *_: jax.tree.map(jnp.empty_like, result), function, *arrays)


def draw_once(draw, key):
    """draw(key) of a key of jax.random, or many: XLA would draw anew for each reader, in the gradient once more."""
    like = jax.random.key_impl(key)
    return no_fusion(lambda data: draw(jax.random.wrap_key_data(data, impl=like)), jax.random.key_data(key))


def batch_sum(x):
    """x (B, C) summed over the batch."""
    return jnp.dot(jnp.ones(len(x), x.dtype), x, precision=HIGHEST)


def pixel_sum(x):
    """x (B, P, C) summed over its pixels: by eights, together with what computes x; then in windows of at most 32.

    XLA merges no other work into windows, and would compile a sum over all at once into slow loops.
    """
    b, pixels, c = x.shape
    at_once = next(size for size in (8, 4, 2, 1) if pixels % size == 0)
    parts = x.reshape(b, -1, at_once, c)
    sums = sum(parts[:, :, i] for i in range(at_once))
    window = max(size for size in range(1, 33) if sums.shape[1] % size == 0)
    windows = (1, window, 1)
    return lax.reduce_window(sums, jnp.zeros((), x.dtype), lax.add, windows, windows, "VALID").sum(1)


def materialize(arrays):
    """arrays, computed before anything reads them.

    XLA would compute them anew for each reader, and copy what they were computed from where they are to replace it.
    """
    return lax.optimization_barrier(arrays)


def checkpoint(call, *arguments):
    """call(*arguments), whose gradient computes what it needs of the way anew: jax.checkpoint for XLA on CPUs.

    XLA forgets there what jax.checkpoint orders, and does the second computation along with the first.
    """
    call, inputs = jax.closure_convert(lambda: call(*arguments))
    return recomputed(call, *inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(call, *inputs):
    return call(*inputs)


def recomputed_backward(call, inputs, g):
    inputs = jax.tree.map(lambda x: after(g, x), inputs)
    return jax.vjp(call, *inputs)[1](g)


recomputed.defvjp(lambda call, *inputs: (call(*inputs), inputs), recomputed_backward)


def after(g, x):
    """x, which XLA cannot have before it has g; NaN where a number of g that is looked at is."""
    first = g.ravel()[0]
    return jnp.where(jnp.isnan(first), first.astype(x.dtype), x)


def sum_of_squares(x):
    """Scalar sum of x squared; of large arrays the sum of 32 parts first, where XLA's sum is 8 times slower."""
    squares = jnp.square(x)
    if x.size >= LARGE and x.size % 32 == 0:
        parts = jnp.square(x.reshape(32, -1))
        squares = sum(parts[i] for i in range(32))
    return jnp.sum(squares)
