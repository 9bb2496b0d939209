"""Convolutions and their gradients by oneDNN's calls, for `cpu_convolution`."""

import jax.numpy as jnp

from jax_ddpm.arrays import upcast_dtype
from jax_ddpm.cpu import onednn, xla

LARGE = 1 << 25  # bytes of both factors of a kernel's gradient; from there on parts are faster than the whole
PARTS = 16  # at most, for each of them is compiled


def serves(x, kernel) -> bool:
    """Whether oneDNN convolves: where it pays, and where channels do not fill whole vectors of sixteen."""
    vectors = all(channels % 16 == 0 or channels <= 4 for channels in kernel.shape[2:])
    return onednn.pays(x) or (onednn.serves(x.dtype) and not vectors)


def correlate(x, kernel, strides, padding, bias=None):
    """Cross-correlation of x (B, H, W, I) with a kernel (K, K, I, O), plus bias (O,). One stride, pair per axis."""
    if is_2x2(x, kernel, strides, padding):
        return correlate_2x2(x, kernel, bias)
    return onednn.convolve(x, kernel, strides, padding, bias=bias)


def correlate_flipped(x, kernel, padding):
    """The same, stride 1, with a kernel (K, K, O, I) as in a convolution's gradient: flipped in space."""
    if is_2x2(x, kernel, (1, 1), padding):
        return correlate_2x2(x, kernel, flipped=True)
    return onednn.convolve(x, kernel[::-1, ::-1], (1, 1), padding, axes=(0, 1, 3, 2))


def input_gradient(x, kernel, stride: int, padding: int, size: tuple[int, int]):
    """A convolution's gradient for its input, as `cpu_convolution.spread`: maps of `size`, multiples of the stride.

    Every stride-th pixel, from r on, is a convolution of x with every stride-th tap, from (r + padding) mod stride on.
    """

    def phases(n_x, n_y):
        """Of one axis: the first tap, and the padding before and behind x."""
        for r in range(stride):
            first = (r + padding) % stride
            taps, ahead = len(range(first, len(kernel), stride)), (r + padding - first) // stride
            yield first, (taps - 1 - ahead, n_y // stride - 1 + ahead - (n_x - 1))

    down, across = (list(phases(*n)) for n in zip(x.shape[1:3], size, strict=True))
    rows = [
        [correlate_flipped(x, kernel[a::stride, b::stride], [above, left]) for b, left in across] for a, above in down
    ]
    return jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2).reshape(len(x), *size, -1)


def is_2x2(x, kernel, strides, padding) -> bool:
    """Whether x are maps of 2x2 that keep their size, with half a kernel of 3x3 hanging over every edge."""
    sizes = x.shape[1:3], kernel.shape[:2], tuple(strides), tuple(map(tuple, padding))
    return sizes == ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)))


def correlate_2x2(x, kernel, bias=None, flipped: bool = False):
    """Cross-correlation of maps of 2x2: a product of matrices for each of a kernel's nine pixels, no padding."""
    dtype = upcast_dtype(x.dtype)
    pixels = [(0, 0), (0, 1), (1, 0), (1, 1)]
    y = dict.fromkeys(pixels, 0 if bias is None else bias.astype(dtype))
    for a, b in [(a, b) for a in range(3) for b in range(3)]:
        meeting = [(i, j) for i, j in pixels if (i + a - 1, j + b - 1) in pixels]
        rows = jnp.concatenate([x[:, i + a - 1, j + b - 1] for i, j in meeting])
        tap = kernel[2 - a, 2 - b] if flipped else kernel[a, b]
        products = onednn.matmul(rows, tap, transpose_b=flipped, dtype=dtype)
        for pixel, part in zip(meeting, jnp.split(products, len(meeting)), strict=True):
            y[pixel] = y[pixel] + part
    return jnp.stack([y[pixel] for pixel in pixels], axis=1).reshape(len(x), 2, 2, -1).astype(x.dtype)


def kernel_gradient(x, g, k: int, stride: int, padding: int):
    """Of the sum of g (B, H', W', O) times the convolution of x (B, H, W, I): (K, K, I, O); not finite if x is not."""
    if stride == 1 and g.shape[3] < x.shape[3] and x.shape[3] * g.shape[3] < g[..., 0].size:
        edge = k - 1 - padding  # fewer channels to transpose, and little to turn around
        flipped = correlate_batches(g, x, k, 1, [(edge, edge), (edge, edge)])
        return flipped[::-1, ::-1].swapaxes(2, 3)
    ends = [k + stride * (n_g - 1) - n_x - padding for n_x, n_g in zip(x.shape[1:3], g.shape[1:3], strict=True)]
    x = x[:, : x.shape[1] + min(ends[0], 0), : x.shape[2] + min(ends[1], 0)]  # what windows reach
    return correlate_batches(x, g, k, stride, [(padding, max(end, 0)) for end in ends])


def correlate_batches(image, window, k: int, dilation: int, padding):
    """Of image (B, H, W, C) and a window (B, H', W', D), summed over the batch: (K, K, C, D).

    With the batch as channels, and every column's channels as neighbouring columns: the windows have gaps of C columns,
    and the results of a row, K C columns for K rows, are the wanted numbers in their order. Each half of the channels
    by itself where K is odd and they fill no vectors of sixteen: K rows do not suit two cores.
    """
    (b, h, w, c), (edges, (low, high)) = image.shape, padding
    large = image.nbytes + window.nbytes >= LARGE
    part = max(64 // image.dtype.itemsize, -(-b // PARTS)) if large else b
    halves = 2 if k % 2 and c % 2 == 0 and c % 16 and not large else 1
    of_each = c // halves
    sums = 0
    for first in range(0, b, part):
        some = slice(first, first + part)
        pixels = image[some].reshape(-1, h * w, halves, of_each)
        if halves == 1 and len(pixels) <= 64:  # what is faster
            columns = onednn.transpose(pixels.reshape(len(pixels), -1))
        else:
            columns = xla.no_fusion(lambda x: x.transpose(2, 1, 3, 0), pixels)
        sums += onednn.convolve(
            columns.reshape(halves, h, w * of_each, -1),
            window[some],
            (1, 1),
            [edges, (low * of_each, high * of_each)],
            dilation=(dilation, dilation * of_each),
            axes=(1, 2, 0, 3),
            dtype=jnp.float32,
        )
    sums = sums.astype(image.dtype).reshape(halves, k, k, of_each, -1)
    return sums.transpose(1, 2, 0, 3, 4).reshape(k, k, c, -1)
