"""Convolutions rewritten as operations that XLA compiles to fast code on CPUs. Results are equal up to rounding.

All functions can be differentiated once, in reverse mode.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.cpu import onednn_convolution, products, winograd, xla

HIGHEST = lax.Precision.HIGHEST
NHWC = ("NHWC", "HWIO", "NHWC")
# Smaller arrays are transposed without `xla.no_fusion`: compiling its `lax.cond` would cost more time than it saves.
NO_FUSION_FROM_ELEMENTS = 1 << 17


def convolve(x, kernel, stride: int, padding: int, bias=None):
    """Cross-correlation of x (B, H, W, I) with a kernel (K, K, I, O), plus a bias (O,), by the fastest method."""
    use_winograd = stride == 1 and winograd.is_faster(x, kernel, padding)  # in float32 also faster than oneDNN
    if onednn_convolution.use_onednn(x, kernel) and (x.dtype == jnp.bfloat16 or not use_winograd):
        return convolve_directly(x, kernel, bias, stride, padding)
    if stride == 1 and x.shape[1:3] == (1, 1) and 2 * padding + 1 == len(kernel):
        y = products.matmul(x, kernel[padding, padding])  # all other taps meet padding only
    elif stride == 1 and (*x.shape[1:3], *kernel.shape[:2], padding) == (2, 2, 3, 3, 1):
        y = winograd.convolve_2x2(x, kernel)  # XLA's convolution is 300 times slower
    elif use_winograd:
        y = winograd.convolve(x, kernel)
    else:
        y = convolve_directly(x, kernel, None, stride, padding)
    return y if bias is None else xla.add_bias(y, bias)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def convolve_directly(x, kernel, bias, stride: int, padding: int):
    """Cross-correlation without Winograd transforms. `bias` must be None unless oneDNN is used."""
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
    """Transposed convolution of x (B, H, W, I) with a kernel (K, K, O, I): `input_gradient` of a convolution.

    size: height and width of the result.
    """
    return input_gradient(x, kernel, stride, padding, size)


def transpose_forward(x, kernel, stride, padding, size):
    return input_gradient(x, kernel, stride, padding, size), (x, kernel)


def transpose_backward(stride, padding, size, saved, g):
    x, kernel = saved
    return correlate(g, kernel, stride, padding), kernel_gradient(g, x, kernel, stride, padding)


transpose_convolve.defvjp(transpose_forward, transpose_backward)


def xla_correlate(x, kernel, stride, padding):
    """Cross-correlation by XLA. stride: one number, or one per axis. padding: one number, or one pair per axis."""
    strides = (stride, stride) if isinstance(stride, int) else stride
    pairs = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    return lax.conv_general_dilated(x, kernel, strides, pairs, dimension_numbers=NHWC, precision=HIGHEST)


def correlate(x, kernel, stride: int, padding: int, bias=None):
    """Cross-correlation of x (B, H, W, I) with a kernel (K, K, I, O). `bias` must be None unless oneDNN is used.

    XLA copies one window of x per output position. If there are few channels, several neighbouring columns of the
    output therefore share one window and are computed as extra output channels. A shared window is only slightly
    larger.
    """
    if onednn_convolution.use_onednn(x, kernel):
        return onednn_convolution.correlate(x, kernel, (stride, stride), 2 * ((padding, padding),), bias)
    columns = columns_per_window(x, kernel, stride, padding)
    if columns == 1:
        return xla_correlate(x, kernel, stride, padding)
    shifted = [jnp.pad(kernel, ((0, 0), (j, columns - 1 - j), (0, 0), (0, 0))) for j in range(columns)]
    y = xla_correlate(x, jnp.concatenate(shifted, axis=-1), (1, columns), padding)
    return y.reshape(*x.shape[:3], kernel.shape[-1])


def columns_per_window(x, kernel, stride: int, padding: int) -> int:
    """How many columns of the output to compute from one window of x. The limits were measured.

    More columns mean fewer windows, but up to twice the multiplications.
    """
    width, (k, _, i, o) = x.shape[2], kernel.shape
    if stride != 1 or k != 3 or padding != 1:
        return 1
    if min(i, o) <= 4 and width % 4 == 0:
        return 4
    return 2 if i * o <= 400 and width % 2 == 0 else 1


def input_gradient(x, kernel, stride: int, padding: int, size: tuple[int, int]):
    """A convolution's gradient with respect to its input: y[stride m + a - padding] += kernel[a]^T x[m].

    x: the gradient (B, H', W', O) of the convolution's output. kernel: (K, K, I, O). size: height and width of y.

    One convolution computes each block of stride x stride pixels of y as channels (sub-pixel convolution, Shi et al.
    2016, section 3.2), so no zeros are inserted between the pixels of x. The first block starts at y[0] or `padding`
    pixels before it, whichever is cheaper.
    """
    k, (b, *x_size, _), out = len(kernel), x.shape, kernel.shape[2]
    if stride == 1:
        edge = k - 1 - padding
        if onednn_convolution.use_onednn(x, kernel):
            return onednn_convolution.correlate_flipped(x, kernel, [(edge, edge), (edge, edge)])
        return correlate(x, kernel[::-1, ::-1].swapaxes(2, 3), 1, edge)
    if onednn_convolution.use_onednn(x, kernel) and k >= stride and all(n % stride == 0 for n in size):
        return onednn_convolution.input_gradient(x, kernel, stride, padding, size)

    def plan(start):
        """The layout of the blocks if block 0 starts `start` pixels before y[0].

        Returns the kernel taps per block, the first block that is needed, and the last one along each axis.
        """
        last = [(start + n - 1) // stride for n in size]
        return -(-(k + start - padding) // stride), start // stride, last

    def cost(start):
        taps, first, last = plan(start)
        return taps**2 * math.prod(end - first + 1 for end in last)

    start = min(padding, padding + -padding % stride, key=cost)
    taps, first, last = plan(start)
    front = start - padding
    kernel = jnp.pad(kernel, 2 * [(front, taps * stride - k - front)] + 2 * [(0, 0)])
    blocks = kernel.reshape(taps, stride, taps, stride, out, -1)[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    pairs = [(taps - 1 - first, end - (n - 1)) for n, end in zip(x_size, last, strict=True)]
    blocks = blocks.reshape(taps, taps, x.shape[3], -1)
    if onednn_convolution.use_onednn(x, kernel):
        y = onednn_convolution.correlate(x, blocks, (1, 1), pairs)
    else:
        y = xla_correlate(x, blocks, 1, pairs)
    height, width = y.shape[1:3]
    y = y.reshape(b, height, width, stride, stride, out).swapaxes(2, 3).reshape(b, height * stride, width * stride, out)
    crop = [slice(start % stride, start % stride + n) for n in size]
    return y[:, crop[0], crop[1]]


def kernel_gradient(x, g, kernel, stride: int, padding: int):
    """A convolution's gradient with respect to its kernel: (K, K, I, O).

    x: the convolution's input (B, H, W, I). g: the gradient of its output (B, H', W', O).

    This is a convolution of transposed arrays, which XLA compiles to fast code even inside `lax.scan`. There, the
    gradient of jax.vjp becomes naive loops. For large arrays the transpositions are not fused with their producers:
    the fused loops access memory with large strides and are five times slower.
    """
    k, _, i, o = kernel.shape
    if onednn_convolution.use_onednn(x, kernel):
        return onednn_convolution.kernel_gradient(x, g, k, stride, padding)
    # Take windows of g instead of x if x has more channels, since each window is copied k * k times. Do the same if g
    # is higher and wider than x: XLA would otherwise swap x and g itself and compile slow loops.
    if stride == 1 and (2 * padding >= k or (2 * padding == k - 1 and o < i)):
        edge = k - 1 - padding
        flipped = correlate_over_batch(g, x, 1, [(edge, edge), (edge, edge)])  # (O, K, K, I)
        return flipped[:, ::-1, ::-1].transpose(1, 2, 3, 0)
    ends = [k + stride * (g.shape[1 + axis] - 1) - x.shape[1 + axis] - padding for axis in (0, 1)]
    return correlate_over_batch(x, g, stride, [(padding, end) for end in ends]).transpose(1, 2, 0, 3)


def correlate_over_batch(image, window, dilation: int, padding):
    """Cross-correlate image (B, H, W, C) with window (B, h, w, D) and sum over the batch: (C, H', W', D)."""

    def transpose(x, *axes):
        if x.size < NO_FUSION_FROM_ELEMENTS:
            return x.transpose(axes)
        return xla.no_fusion(lambda x: x.transpose(axes), x)

    return lax.conv_general_dilated(
        transpose(image, 3, 1, 2, 0),
        transpose(window, 1, 2, 0, 3),
        window_strides=(1, 1),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=NHWC,
        precision=HIGHEST,
    )
