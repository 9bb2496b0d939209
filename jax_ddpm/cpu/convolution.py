"""Convolutions by routes that XLA's compiler for CPUs makes fast: the same numbers up to rounding.

Differentiable once, in reverse mode.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.cpu import onednn_convolution as by_onednn
from jax_ddpm.cpu import products, winograd, xla

HIGHEST = lax.Precision.HIGHEST
NHWC = ("NHWC", "HWIO", "NHWC")
LARGE = 1 << 17  # numbers; below, transpositions cost less than compiling a branch for them


def convolve(x, kernel, stride: int, padding: int, bias=None):
    """Cross-correlation of x (B, H, W, I) with a kernel (K, K, I, O), plus bias (O,), by what is fast for the shape."""
    filtered = stride == 1 and winograd.pays(x, kernel, padding)  # in float32 faster than oneDNN, too
    if by_onednn.serves(x, kernel) and (x.dtype == jnp.bfloat16 or not filtered):
        return convolve_directly(x, kernel, bias, stride, padding)
    if stride == 1 and x.shape[1:3] == (1, 1) and 2 * padding + 1 == len(kernel):
        y = products.matmul(x, kernel[padding, padding])  # all other taps meet padding only
    elif stride == 1 and (*x.shape[1:3], *kernel.shape[:2], padding) == (2, 2, 3, 3, 1):
        y = winograd.convolve_2x2(x, kernel)  # XLA's own is some 300 times slower
    elif filtered:
        y = winograd.convolve(x, kernel)
    else:
        y = convolve_directly(x, kernel, None, stride, padding)
    return y if bias is None else xla.add_bias(y, bias)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def convolve_directly(x, kernel, bias, stride: int, padding: int):
    """Cross-correlation without a transform of its factors; with a bias, or None, where oneDNN serves."""
    return correlate(x, kernel, stride, padding, bias)


def convolve_forward(x, kernel, bias, stride, padding):
    return correlate(x, kernel, stride, padding, bias), (x, kernel, bias)


def convolve_backward(stride, padding, saved, g):
    x, kernel, bias = saved
    dx = input_gradient(g, kernel, stride, padding, x.shape[1:3])
    dbias = None if bias is None else xla.add_bias_backward(bias, g)[1]
    return dx, kernel_gradient(x, g, kernel, stride, padding), dbias


convolve_directly.defvjp(convolve_forward, convolve_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def transpose_convolve(x, kernel, stride: int, padding: int, size: tuple[int, int]):
    """Transposed convolution of x (B, H, W, I) with a kernel (K, K, O, I) to maps of `size`: a convolution's dx."""
    return input_gradient(x, kernel, stride, padding, size)


def transpose_forward(x, kernel, stride, padding, size):
    return input_gradient(x, kernel, stride, padding, size), (x, kernel)


def transpose_backward(stride, padding, size, saved, g):
    x, kernel = saved
    return correlate(g, kernel, stride, padding), kernel_gradient(g, x, kernel, stride, padding)


transpose_convolve.defvjp(transpose_forward, transpose_backward)


def plain(x, kernel, stride, padding):
    """Cross-correlation, XLA's own. stride: one number, or one per axis; padding: one number, or pairs."""
    strides = (stride, stride) if isinstance(stride, int) else stride
    edges = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    return lax.conv_general_dilated(x, kernel, strides, edges, dimension_numbers=NHWC, precision=HIGHEST)


def correlate(x, kernel, stride: int, padding: int, bias=None):
    """Cross-correlation, plus a bias where oneDNN serves; with few channels, neighbouring columns at once as channels.

    XLA gathers every window of x anew: one window for `at_once` columns is not much larger than one for one.
    """
    if by_onednn.serves(x, kernel):
        return by_onednn.correlate(x, kernel, (stride, stride), 2 * ((padding, padding),), bias)
    at_once = columns_at_once(x, kernel, stride, padding)
    if at_once == 1:
        return plain(x, kernel, stride, padding)
    shifted = [jnp.pad(kernel, ((0, 0), (j, at_once - 1 - j), (0, 0), (0, 0))) for j in range(at_once)]
    y = plain(x, jnp.concatenate(shifted, axis=-1), (1, at_once), padding)
    return y.reshape(*x.shape[:3], kernel.shape[-1])


def columns_at_once(x, kernel, stride: int, padding: int) -> int:
    """How many columns of the output: fewer windows, but up to twice the multiplications. The limits are measured."""
    width, (k, _, i, o) = x.shape[2], kernel.shape
    if stride != 1 or k != 3 or padding != 1:
        return 1
    if min(i, o) <= 4 and width % 4 == 0:
        return 4
    return 2 if i * o <= 400 and width % 2 == 0 else 1


def input_gradient(x, kernel, stride: int, padding: int, size: tuple[int, int]):
    """A convolution's gradient for its input: y[stride m + a - padding] += kernel[a]^T x[m], maps of `size`.

    The stride x stride pixels of each block of y as channels of one convolution (Shi et al. 2016, section 3.2), with
    no multiplication by zeros between the pixels of x. Blocks begin at y[0], or `padding` before it: what costs less.
    """
    k, (b, *maps, _), out = len(kernel), x.shape, kernel.shape[2]
    if stride == 1:
        edge = k - 1 - padding
        if by_onednn.serves(x, kernel):
            return by_onednn.correlate_flipped(x, kernel, [(edge, edge), (edge, edge)])
        return correlate(x, kernel[::-1, ::-1].swapaxes(2, 3), 1, edge)
    if by_onednn.serves(x, kernel) and k >= stride and all(n % stride == 0 for n in size):
        return by_onednn.input_gradient(x, kernel, stride, padding, size)

    def plan(start):
        """y[0] is pixel `start` of the blocks: taps a block, the first and the last block of y along each axis."""
        ends = [(start + n - 1) // stride for n in size]
        return -(-(k + start - padding) // stride), start // stride, ends

    def cost(start):
        taps, first, ends = plan(start)
        return taps**2 * math.prod(end - first + 1 for end in ends)

    start = min(padding, padding + -padding % stride, key=cost)
    taps, first, ends = plan(start)
    front = start - padding
    kernel = jnp.pad(kernel, 2 * [(front, taps * stride - k - front)] + 2 * [(0, 0)])
    blocks = kernel.reshape(taps, stride, taps, stride, out, -1)[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    edges = [(taps - 1 - first, end - (n - 1)) for n, end in zip(maps, ends, strict=True)]
    blocks = blocks.reshape(taps, taps, x.shape[3], -1)
    y = by_onednn.correlate(x, blocks, (1, 1), edges) if by_onednn.serves(x, kernel) else plain(x, blocks, 1, edges)
    height, width = y.shape[1:3]
    y = y.reshape(b, height, width, stride, stride, out).swapaxes(2, 3).reshape(b, height * stride, width * stride, out)
    crop = [slice(start % stride, start % stride + n) for n in size]
    return y[:, crop[0], crop[1]]


def kernel_gradient(x, g, kernel, stride: int, padding: int):
    """Of the sum of g (B, H', W', O) times the convolution of x (B, H, W, I): (K, K, I, O).

    A convolution of transposed arrays, of the kind that XLA makes fast inside loops too; jax.vjp's would be naive loops
    there. Of large arrays XLA would merge the transpositions with whatever computes them, into loops that jump
    through memory and take five times as long as the parts.
    """
    k, _, i, o = kernel.shape
    if by_onednn.serves(x, kernel):
        return by_onednn.kernel_gradient(x, g, k, stride, padding)
    # Windows of g in place of x: where x has more channels, for each is copied k * k times; and where the maps of g are
    # larger, for XLA would make windows of x by itself, and slow loops of that.
    if stride == 1 and (2 * padding >= k or (2 * padding == k - 1 and o < i)):
        edge = k - 1 - padding
        flipped = correlate_batches(g, x, 1, [(edge, edge), (edge, edge)])  # (O, K, K, I)
        return flipped[:, ::-1, ::-1].transpose(1, 2, 3, 0)
    ends = [k + stride * (g.shape[1 + axis] - 1) - x.shape[1 + axis] - padding for axis in (0, 1)]
    return correlate_batches(x, g, stride, [(padding, end) for end in ends]).transpose(1, 2, 0, 3)


def correlate_batches(image, window, dilation: int, padding):
    """Of image (B, H, W, C) and a window (B, K, K, D), summed over the batch: (C, H', W', D)."""

    def transposed(x, *axes):
        return x.transpose(axes) if x.size < LARGE else xla.no_fusion(lambda x: x.transpose(axes), x)

    return lax.conv_general_dilated(
        transposed(image, 3, 1, 2, 0),
        transposed(window, 1, 2, 0, 3),
        window_strides=(1, 1),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=NHWC,
        precision=HIGHEST,
    )
