"""3x3 convolutions, stride 1, padding 1, with fewer multiplications.

`convolve` is Winograd's minimal filtering F(2x2, 3x3), Lavin & Gray 2016, section 4.1: each 2x2 block of the output is
computed from a 4x4 tile of the input with 16 multiplications per pair of channels instead of 36. `convolve_2x2` is for
images of 2x2 pixels, with 9 multiplications instead of 16. The order of summation differs from that of a direct
convolution. In float32 the error is about twice as large.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_ddpm.arrays import upcast_dtype
from jax_ddpm.cpu import onednn

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # Lavin & Gray 2016, eq. 7
G_2X2 = np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]])
EXCEEDS_CACHE_FROM_ELEMENTS = 1 << 20  # smaller inputs fit in the CPU's caches
SPLIT_UP_TO_CHANNEL_PRODUCT = 1 << 16  # largest I * O for which the batch is split into parts
PART_BYTES = 1 << 22  # size of the tiles and products of a part; may be up to twice that
TRANSPOSE_FLAGS = {"tpi,tio->tpo": (False, False), "tpo,tio->tpi": (False, True), "tpi,tpo->tio": (True, False)}
AS_IS, FLIPPED = (0, 1, 2, 3), (3, 1, 2, 0)  # a kernel flipped in space has the same transform, permuted like this


def is_faster(x, kernel, padding: int) -> bool:
    """Whether `convolve` is faster on a CPU.

    Per tile, it saves multiplications in proportion to I * O, and its transforms cost time in proportion to I + O.
    """
    (_, height, width, i), (k, _, _, o) = x.shape, kernel.shape
    min_ratio = 32 if use_onednn(x) else 85  # measured
    return k == 3 and padding == 1 and height % 2 == width % 2 == 0 and i * o >= min_ratio * (i + o)


def use_onednn(x) -> bool:
    """Whether oneDNN computes the products for the input x."""
    return onednn.is_faster(x) and x.size >= EXCEEDS_CACHE_FROM_ELEMENTS


@jax.custom_vjp
def convolve(x, kernel):
    """Cross-correlation of x (B, H, W, I), H and W even, with a kernel (3, 3, I, O)."""
    product, u = make_product(x), kernel_transform(kernel, G)
    y = lax.map(lambda x: convolve_tiles(x, u, product, "tpi,tio->tpo", AS_IS), split_batch(x, x, kernel))
    return y.reshape(*x.shape[:3], -1)


def convolve_forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def convolve_backward(saved, g):
    x, kernel = saved
    product, u = make_product(x), kernel_transform(kernel, G)

    x_parts, g_parts = split_batch(x, x, kernel), split_batch(g, x, kernel)

    def add_part(i, carry):
        products, dx = carry
        x, g = (lax.dynamic_index_in_dim(a, i, 0, False, allow_negative_indices=False) for a in (x_parts, g_parts))
        products += product("tpi,tpo->tio", input_tiles(x, AS_IS), output_gradients(g))
        dx_part = convolve_tiles(g, u, product, "tpo,tio->tpi", FLIPPED)
        return products, lax.dynamic_update_index_in_dim(dx, dx_part, i, 0, allow_negative_indices=False)

    zero = jnp.zeros(u.shape, upcast_dtype(x.dtype))
    products, dx = lax.fori_loop(0, len(x_parts), add_part, (zero, output_buffer(g, x_parts.shape)))
    return dx.reshape(x.shape), kernel_gradient(products, G, kernel)


convolve.defvjp(convolve_forward, convolve_backward)


def output_buffer(a, shape):
    """A buffer for a loop over `a` to fill. It depends on `a`, so that XLA creates it only when `a` exists.

    With zeros, as lax.scan uses them, XLA would create the buffers of all such loops at the start of the step.
    """
    return jnp.full(shape, a.ravel()[0], a.dtype)


def split_batch(a, x, kernel):
    """Split `a` (B, ...) into N parts: (N, B / N, ...). `a` is x or the gradient of the convolution's output.

    The tiles and products of a part then fit in the CPU's caches. With many channels there is one part only: reading
    the transformed kernel again for each part would cost more.
    """
    count, (i, o) = 1, kernel.shape[2:]
    total_bytes = 4 * (x.nbytes // i) * (i + o)  # of all tiles and products
    if x.size >= EXCEEDS_CACHE_FROM_ELEMENTS and i * o <= SPLIT_UP_TO_CHANNEL_PRODUCT:
        while len(x) % (2 * count) == 0 and total_bytes > 2 * PART_BYTES * count:
            count *= 2
    return a.reshape(count, len(x) // count, *a.shape[1:])


def convolve_tiles(x, u, product, equation: str, order):
    """A^T [u * (B^T d B)] A, eq. 8, with a kernel's transform u and the tiles d of x.

    equation: einsum equation of the product u * (B^T d B). order: AS_IS, or FLIPPED for a flipped kernel.
    """
    b, height, width, _ = x.shape
    m = product(equation, input_tiles(x, order), u)
    m = m.reshape(4, 4, b, height // 2, width // 2, -1)
    blocks = [output_transform(row, order) for row in output_transform(m, order)]  # [i][j]: (B, H / 2, W / 2, C)
    y = jnp.stack([jnp.stack(row, axis=3) for row in blocks], axis=2)
    return y.reshape(b, height, width, -1).astype(x.dtype)


def make_product(x):
    """A function product(equation, a, b): 16 or 9 matrix products at once, summed in float32 or float64.

    x: the layer's input. Its size and dtype decide whether the function uses oneDNN.
    """
    dtype = upcast_dtype(x.dtype)

    def product(equation, a, b):
        if use_onednn(x):
            return onednn.matmul(a, b, *TRANSPOSE_FLAGS[equation], dtype=dtype)
        return jnp.einsum(equation, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)

    return product


def kernel_transform(kernel, g):
    """G k G^T of each k = kernel[:, :, i, o]: (T, I, O). One matrix product: XLA's sums would be slower."""
    matrix = jnp.asarray(np.kron(g, g), kernel.dtype)
    return jnp.dot(matrix, kernel.reshape(9, -1), precision=lax.Precision.HIGHEST).reshape(-1, *kernel.shape[2:])


def kernel_gradient(products, g, kernel):
    """G^T m G of the products' gradients m (T, I, O): (3, 3, I, O)."""
    matrix = jnp.asarray(np.kron(g, g).T, products.dtype)
    gradient = jnp.dot(matrix, products.reshape(len(products), -1), precision=lax.Precision.HIGHEST)
    return gradient.reshape(kernel.shape).astype(kernel.dtype)


def input_tiles(x, order):
    """B^T d B of the overlapping 4x4 tiles d of the padded x: (16, tiles, channels)."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.stack(input_transform(x, 1, order))
    return jnp.stack(input_transform(rows, 3, order), axis=1).reshape(16, -1, x.shape[-1])


def input_transform(x, axis: int, order):
    """Apply B^T along an axis of length 2n + 2. Returns four arrays with length n along it."""
    last = x.shape[axis] - 3
    d = [lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(4)]
    v = d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]
    return [v[i] for i in order]


def output_transform(m, order):
    """Apply A^T along the first axis, of length 4. Returns two arrays."""
    m = [m[i] for i in order]
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def output_gradients(g):
    """A dY A^T of the 2x2 blocks dY of g: (16, blocks, channels)."""
    b, height, width, channels = g.shape
    g = g.reshape(b, height // 2, 2, width // 2, 2, channels)

    def rows(p, q):
        return p, p + q, p - q, -q

    z = jnp.stack(rows(g[:, :, 0], g[:, :, 1]))
    return jnp.stack(rows(z[..., 0, :], z[..., 1, :]), axis=1).reshape(16, -1, channels)


@jax.custom_vjp
def convolve_2x2(x, kernel):
    """Cross-correlation of x (B, 2, 2, I) with a kernel (3, 3, I, O).

    Along one axis the outputs are k1 x0 + k2 x1 = m0 + m1 and k0 x0 + k1 x1 = m0 + m2. This needs three products
    instead of four: m0 = k1 (x0 + x1), m1 = (k2 - k1) x1, m2 = (k0 - k1) x0.
    """
    m = make_product(x)("tpi,tio->tpo", input_transform_2x2(x, 1, 0), kernel_transform(kernel, G_2X2))
    return output_transform_2x2(m, 1, 2).astype(x.dtype)


def convolve_2x2_forward(x, kernel):
    return convolve_2x2(x, kernel), (x, kernel)


def convolve_2x2_backward(saved, g):
    x, kernel = saved
    product, z = make_product(x), input_transform_2x2(g, 0, 1)
    dx = output_transform_2x2(product("tpo,tio->tpi", z, kernel_transform(kernel, G_2X2)), 2, 1).astype(x.dtype)
    return dx, kernel_gradient(product("tpi,tpo->tio", input_transform_2x2(x, 1, 0), z), G_2X2, kernel)


convolve_2x2.defvjp(convolve_2x2_forward, convolve_2x2_backward)


def input_transform_2x2(x, first: int, second: int):
    """Apply (x0, x1) -> (x0 + x1, x_first, x_second) along both axes of the 2x2 images: (9, B, C)."""

    def transform(x, axis):
        x = [lax.index_in_dim(x, i, axis, keepdims=False) for i in (0, 1)]
        return x[0] + x[1], x[first], x[second]

    return jnp.stack([v for row in transform(x, 1) for v in transform(row, 1)])


def output_transform_2x2(m, first: int, second: int):
    """Apply (m0, m1, m2) -> (m0 + m_first, m0 + m_second) along both axes of the 3x3 products: (B, 2, 2, C)."""
    m = m.reshape(3, 3, *m.shape[1:])
    rows = m[0] + m[first], m[0] + m[second]
    return jnp.stack([jnp.stack([row[0] + row[first], row[0] + row[second]], axis=1) for row in rows], axis=1)
