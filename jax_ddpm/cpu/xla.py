"""Operations rewritten so that XLA compiles them to fast code on CPUs. Results are equal up to the order of summation.

Functions with a custom gradient can be differentiated once, in reverse mode.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.arrays import upcast

HIGHEST = lax.Precision.HIGHEST
FUSE_BELOW_ELEMENTS = 1 << 17  # XLA may fuse and recompute smaller arrays: that costs little


def cast(x, dtype):
    """x as `dtype`. Casts float32 to bfloat16 by shifting bits, which takes half the time of XLA's conversion.

    Not differentiable. The shift turns a signalling NaN into infinity, but arithmetic never produces one.
    """
    if dtype != jnp.bfloat16 or x.dtype != jnp.float32:
        return x.astype(dtype)
    bits = lax.bitcast_convert_type(lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7), jnp.uint32)
    return lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), dtype)


@jax.custom_vjp
def add_to_pixels(x, vectors):
    """x (B, ..., W, C) + vectors (B, C).

    Has a custom gradient: in JAX's gradient, XLA would fuse the sum over pixels into slow loops.

    XLA's loops over few channels are slow. So if C is not a multiple of 16, W and C are merged into one axis.
    """

    def add(x, vectors):
        return cast(upcast(x) + jnp.expand_dims(upcast(vectors), tuple(range(1, x.ndim - 1))), x.dtype)

    if x.shape[-1] % 16 == 0:
        return add(x, vectors)
    columns = x.shape[-2]
    rows = x.reshape(*x.shape[:-2], columns * x.shape[-1])
    return no_fusion(add, rows, jnp.tile(vectors, (1, columns))).reshape(x.shape)


def add_to_pixels_backward(vectors, g):
    return g, pixel_sum(g).astype(vectors.dtype)


add_to_pixels.defvjp(lambda x, vectors: (add_to_pixels(x, vectors), vectors), add_to_pixels_backward)


@jax.custom_vjp
def add_bias(x, bias):
    """x (B, ..., C) + bias (C,)."""
    return x + bias


def add_bias_backward(bias, g):
    return g, batch_sum(pixel_sum(g)).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), add_bias_backward)


@jax.custom_vjp
def silu(x):
    """SiLU of x (..., C), computed in float32 or float64: in bfloat16 XLA would round every intermediate result.

    If no gradient is computed, the dtype is float32 or float64, and C is a multiple of 16, XLA may fuse SiLU with the
    producer of x.
    """
    may_fuse = upcast(x).dtype == x.dtype and x.shape[-1] % 16 == 0
    return jax.nn.silu(x) if may_fuse else elementwise(jax.nn.silu, x)


def silu_forward(x):
    return elementwise(jax.nn.silu, x), x


def silu_backward(x, g):
    return (elementwise(lambda x, g: jax.vjp(jax.nn.silu, x)[1](g)[0], x, g),)


silu.defvjp(silu_forward, silu_backward)


@jax.custom_vjp
def max_pool_2x2(x):
    """2x2 max pooling. The gradient goes to the first of equal values. XLA's own gradient is slow in bfloat16."""
    return max_pool_forward(x)[0]


def max_pool_forward(x):
    b, h, w, c = x.shape
    left, right = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(4, 0, 1, 2, 3, 5)
    is_right = is_larger(right, left)
    top, bottom = jnp.where(is_right, right, left).transpose(2, 0, 1, 3, 4)
    is_bottom = is_larger(bottom, top)
    argmax = 2 * is_bottom + jnp.where(is_bottom, is_right[:, :, 1], is_right[:, :, 0])  # 0 to 3, row by row
    return jnp.where(is_bottom, bottom, top), argmax.astype(jnp.int8)


def max_pool_backward(argmax, g):
    b, h, w, c = g.shape
    is_max = argmax[:, :, None, :, None] == jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
    return (jnp.where(is_max, g[:, :, None, :, None], 0).reshape(b, 2 * h, 2 * w, c),)


max_pool_2x2.defvjp(max_pool_forward, max_pool_backward)


def is_larger(a, b):
    """Where a > b. NaN counts as the largest value."""
    return (a > b) | (a != a)


@jax.custom_vjp
def concatenate_channels(*arrays):
    """Arrays (B, H, W, C_i) side by side: (B, H, W, sum of C_i)."""
    dtype = arrays[0].dtype
    if dtype != jnp.bfloat16:
        return jnp.concatenate(arrays, axis=-1)
    as_integers = [lax.bitcast_convert_type(a, jnp.uint16) for a in arrays]  # XLA would convert to float32 and back
    return lax.bitcast_convert_type(jnp.concatenate(as_integers, axis=-1), dtype)


def concatenate_forward(*arrays):
    return concatenate_channels(*arrays), [a.shape[-1] for a in arrays]


def concatenate_backward(channels, g):
    ends = list(itertools.accumulate(channels))
    return tuple(g[..., end - c : end] for c, end in zip(channels, ends, strict=True))


concatenate_channels.defvjp(concatenate_forward, concatenate_backward)


def elementwise(function, *arrays):
    """Apply an element-wise function in float32 or float64 and cast the result to the dtype of the first array.

    The result of large arrays is materialised: XLA would otherwise recompute it for each of its consumers. XLA's loops
    over few channels are slow. So if the last axis is not a multiple of 16, the arrays are flattened.
    """
    shape, dtype = arrays[0].shape, arrays[0].dtype

    def apply(*arrays):
        return cast(function(*map(upcast, arrays)), dtype)

    if shape[-1] % 16 != 0:
        return no_fusion(apply, *(a.ravel() for a in arrays)).reshape(shape)
    return apply(*arrays) if arrays[0].size < FUSE_BELOW_ELEMENTS else no_fusion(apply, *arrays)


def no_fusion(function, *arrays):
    """function(*arrays), which XLA cannot fuse with anything: it runs inside an always-taken branch of `lax.cond`."""
    result = jax.eval_shape(function, *arrays)
    always_false = arrays[0].ravel()[0] > jnp.inf  # but XLA does not know it
    return lax.cond(always_false, lambda *_: jax.tree.map(jnp.empty_like, result), function, *arrays)


def draw_once(draw, key):
    """draw(key) for one key of jax.random or an array of keys, materialised.

    XLA would otherwise repeat the draw for each of its consumers, and again in the backward pass.
    """
    impl = jax.random.key_impl(key)
    return no_fusion(lambda data: draw(jax.random.wrap_key_data(data, impl=impl)), jax.random.key_data(key))


def batch_sum(x):
    """Sum of x (B, C) over the batch: (C,)."""
    return jnp.dot(jnp.ones(len(x), x.dtype), x, precision=HIGHEST)


def pixel_sum(x):
    """Sum of x (B, ..., C) over all pixels, in float32 or float64: (B, C).

    First adds groups of up to 8 pixels, which XLA fuses with the producer of x. Then sums windows of up to 32 groups,
    which XLA fuses with nothing. Then sums the windows. XLA would compile a single sum over all pixels to slow loops.
    """
    b, c = len(x), x.shape[-1]
    x = upcast(x.reshape(b, -1, c))
    group_size = next(size for size in (8, 4, 2, 1) if x.shape[1] % size == 0)
    groups = x.reshape(b, -1, group_size, c)
    sums = sum(groups[:, :, i] for i in range(group_size))
    window_size = max(size for size in range(1, 33) if sums.shape[1] % size == 0)
    window = (1, window_size, 1)
    return lax.reduce_window(sums, jnp.zeros((), x.dtype), lax.add, window, window, "VALID").sum(1)


def materialize(arrays):
    """The arrays, computed before anything uses them.

    XLA would otherwise recompute them for each of their consumers. If a consumer updates their inputs in place, XLA
    would also copy these inputs.
    """
    return lax.optimization_barrier(arrays)


def checkpoint(call, *arguments):
    """call(*arguments), which recomputes its activations in the backward pass: `jax.checkpoint` for CPUs.

    XLA ignores the barriers of `jax.checkpoint` on CPUs. It merges both forward passes and keeps the activations.
    """
    call, inputs = jax.closure_convert(lambda: call(*arguments))
    return recompute_in_backward(call, *inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recompute_in_backward(call, *inputs):
    return call(*inputs)


def recompute_backward(call, inputs, g):
    first, *_ = jax.tree.leaves(g)
    inputs = jax.tree.map(lambda x: depend_on(x, first), inputs)
    return jax.vjp(call, *inputs)[1](g)


recompute_in_backward.defvjp(lambda call, *inputs: (call(*inputs), inputs), recompute_backward)


def depend_on(x, g):
    """x with an artificial dependency on g, so that XLA computes g first. NaN if the first element of g is NaN."""
    first = g.ravel()[0]
    return jnp.where(jnp.isnan(first), first.astype(x.dtype), x)


def sum_of_squares(x):
    """Sum of x squared, a scalar. Large arrays: first adds 32 parts element by element; XLA's sum is 8 times slower."""
    squares = jnp.square(x)
    if x.size >= FUSE_BELOW_ELEMENTS and x.size % 32 == 0:
        parts = jnp.square(x.reshape(32, -1))
        squares = sum(parts[i] for i in range(32))
    return jnp.sum(squares)
