"""Convolutions and their gradients by oneDNN, for `cpu.convolution`."""

import jax.numpy as jnp

from jax_ddpm.arrays import upcast_dtype
from jax_ddpm.cpu import onednn, xla

# If its two inputs together have at least this many bytes, a kernel's gradient is summed over parts of the batch.
GRADIENT_IN_PARTS_FROM_BYTES = 1 << 25
MAX_PARTS = 16  # each part is compiled separately


def use_onednn(x, kernel) -> bool:
    """Whether to use oneDNN for a convolution of x.

    It is used if `onednn.is_faster(x)`. It is also used if oneDNN supports the dtype and a channel count is above 4 and
    not a multiple of 16.
    """
    fills_vectors = all(channels % 16 == 0 or channels <= 4 for channels in kernel.shape[2:])
    return onednn.is_faster(x) or (onednn.is_supported(x.dtype) and not fills_vectors)


def correlate(x, kernel, strides, padding, bias=None):
    """Cross-correlation of x (B, H, W, I) with a kernel (K, K, I, O), plus a bias (O,): (B, H', W', O).

    strides: one number for rows, one for columns. padding: one pair (before, after) each.
    """
    if is_same_size_2x2(x, kernel, strides, padding):
        return correlate_2x2(x, kernel, bias)
    return onednn.convolve(x, kernel, strides, padding, bias=bias)


def correlate_flipped(x, kernel, padding):
    """`correlate` with stride 1 and the kernel (K, K, O, I) flipped in space, as an input's gradient needs it."""
    if is_same_size_2x2(x, kernel, (1, 1), padding):
        return correlate_2x2(x, kernel, flipped=True)
    return onednn.convolve(x, kernel[::-1, ::-1], (1, 1), padding, axes=(0, 1, 3, 2))


def input_gradient(x, kernel, stride: int, padding: int, size: tuple[int, int]):
    """A convolution's gradient with respect to its input, as `convolution.input_gradient`.

    `size`, the height and width of the result, must be multiples of the stride. The result's pixels r, r + stride, ...
    are a convolution of x with the kernel's taps a, a + stride, ..., where a = (r + padding) mod stride.
    """

    def phases(n_x, n_y):
        """For each r along one axis: the first tap, and the padding (before, after) of x."""
        for r in range(stride):
            first = (r + padding) % stride
            taps, offset = len(range(first, len(kernel), stride)), (r + padding - first) // stride
            yield first, (taps - 1 - offset, n_y // stride - 1 + offset - (n_x - 1))

    row_phases, column_phases = (list(phases(*n)) for n in zip(x.shape[1:3], size, strict=True))
    rows = [
        [
            correlate_flipped(x, kernel[a::stride, b::stride], [row_padding, column_padding])
            for b, column_padding in column_phases
        ]
        for a, row_padding in row_phases
    ]
    return jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2).reshape(len(x), *size, -1)


def is_same_size_2x2(x, kernel, strides, padding) -> bool:
    """Whether this is a 3x3 convolution of 2x2 images with stride 1 and padding 1."""
    sizes = x.shape[1:3], kernel.shape[:2], tuple(strides), tuple(map(tuple, padding))
    return sizes == ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)))


def correlate_2x2(x, kernel, bias=None, flipped: bool = False):
    """Cross-correlation of 2x2 images, padding 1: one matrix product for each of the kernel's nine taps."""
    dtype = upcast_dtype(x.dtype)
    pixels = [(0, 0), (0, 1), (1, 0), (1, 1)]
    y = dict.fromkeys(pixels, 0 if bias is None else bias.astype(dtype))
    for a, b in [(a, b) for a in range(3) for b in range(3)]:
        outputs = [(i, j) for i, j in pixels if (i + a - 1, j + b - 1) in pixels]  # others meet padding at this tap
        rows = jnp.concatenate([x[:, i + a - 1, j + b - 1] for i, j in outputs])
        tap = kernel[2 - a, 2 - b] if flipped else kernel[a, b]
        products = onednn.matmul(rows, tap, transpose_b=flipped, dtype=dtype)
        for pixel, product in zip(outputs, jnp.split(products, len(outputs)), strict=True):
            y[pixel] = y[pixel] + product
    return jnp.stack([y[pixel] for pixel in pixels], axis=1).reshape(len(x), 2, 2, -1).astype(x.dtype)


def kernel_gradient(x, g, k: int, stride: int, padding: int):
    """A convolution's gradient with respect to its kernel: (K, K, I, O). Not finite if x is not.

    x: the convolution's input (B, H, W, I). g: the gradient of its output (B, H', W', O).
    """
    if stride == 1 and g.shape[3] < x.shape[3] and x.shape[3] * g.shape[3] < g[..., 0].size:
        # Transposing g is cheaper, because it has fewer channels. The result must be flipped, but it is small.
        edge = k - 1 - padding
        flipped = correlate_over_batch(g, x, k, 1, [(edge, edge), (edge, edge)])
        return flipped[::-1, ::-1].swapaxes(2, 3)
    ends = [k + stride * (n_g - 1) - n_x - padding for n_x, n_g in zip(x.shape[1:3], g.shape[1:3], strict=True)]
    x = x[:, : x.shape[1] + min(ends[0], 0), : x.shape[2] + min(ends[1], 0)]  # crop what no window reaches
    return correlate_over_batch(x, g, k, stride, [(padding, max(end, 0)) for end in ends])


def correlate_over_batch(image, window, k: int, dilation: int, padding):
    """Cross-correlate image (B, H, W, C) with window (B, H', W', D) and sum over the batch: (K, K, C, D).

    This is one convolution with the batch as channels and with W and C merged into W C columns. The window is dilated
    by C columns, so the K x (K C) result is already in the order (K, K, C). If K is odd, K rows do not divide evenly
    between two cores. So if C is even but not a multiple of 16, the two halves of the channels form a batch of two.
    """
    (b, h, w, c), (row_padding, (left, right)) = image.shape, padding
    in_parts = image.nbytes + window.nbytes >= GRADIENT_IN_PARTS_FROM_BYTES
    part_size = max(64 // image.dtype.itemsize, -(-b // MAX_PARTS)) if in_parts else b
    halves = 2 if k % 2 and c % 2 == 0 and c % 16 and not in_parts else 1
    half_c = c // halves
    sums = 0
    for start in range(0, b, part_size):
        part = slice(start, start + part_size)
        pixels = image[part].reshape(-1, h * w, halves, half_c)
        if halves == 1 and len(pixels) <= 64:  # measured: faster
            columns = onednn.transpose(pixels.reshape(len(pixels), -1))
        else:
            columns = xla.no_fusion(lambda x: x.transpose(2, 1, 3, 0), pixels)
        sums += onednn.convolve(
            columns.reshape(halves, h, w * half_c, -1),
            window[part],
            (1, 1),
            [row_padding, (left * half_c, right * half_c)],
            dilation=(dilation, dilation * half_c),
            axes=(1, 2, 0, 3),
            dtype=jnp.float32,
        )
    sums = sums.astype(image.dtype).reshape(halves, k, k, half_c, -1)
    return sums.transpose(1, 2, 0, 3, 4).reshape(k, k, c, -1)
