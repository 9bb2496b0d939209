"""3x3 convolutions, stride 1, padding 1, with fewer multiplications.

`convolve` is minimal filtering, F(2x2, 3x3) of Lavin & Gray 2016, section 4.1: each 2x2 block of the output comes from
a 4x4 tile of the input by 16 multiplications per pair of channels instead of 36. `convolve_2x2` is for whole maps of
2x2, by 9 multiplications instead of 16. Sums are in other orders than a direct convolution's; in float32 the error is
about twice as large.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_ddpm.arrays import upcast_dtype
from jax_ddpm.cpu import onednn

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # Lavin & Gray 2016, eq. 7
G_2X2 = np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]])
LARGE = 1 << 20  # numbers; fewer a CPU's caches hold as a whole
FEW = 1 << 16  # I x O
CACHED = 1 << 22  # bytes of tiles and products of a part, up to twice that
TRANSPOSED = {"tpi,tio->tpo": (False, False), "tpo,tio->tpi": (False, True), "tpi,tpo->tio": (True, False)}
AS_IS, FLIPPED = (0, 1, 2, 3), (3, 1, 2, 0)  # a kernel flipped in space has the same transform, in this order


def pays(x, kernel, padding: int) -> bool:
    """Whether fewer products outweigh the transforms on a CPU: work per tile I x O against I + O numbers."""
    (_, height, width, i), (k, _, _, o) = x.shape, kernel.shape
    least = 32 if by_onednn(x) else 85  # measured
    return k == 3 and padding == 1 and height % 2 == width % 2 == 0 and i * o >= least * (i + o)


def by_onednn(x) -> bool:
    """Whether oneDNN computes the products."""
    return onednn.pays(x) and x.size >= LARGE


@jax.custom_vjp
def convolve(x, kernel):
    """Cross-correlation of x (B, H, W, I), H and W even, with a kernel (3, 3, I, O)."""
    product, u = product_for(x), kernel_transform(kernel, G)
    y = lax.map(lambda x: filtered(x, u, product, "tpi,tio->tpo", AS_IS), parts(x, x, kernel))
    return y.reshape(*x.shape[:3], -1)


def forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def backward(saved, g):
    x, kernel = saved
    product, u = product_for(x), kernel_transform(kernel, G)

    x_parts, g_parts = parts(x, x, kernel), parts(g, x, kernel)

    def part(i, found):
        products, dx = found
        x, g = (lax.dynamic_index_in_dim(a, i, 0, False, allow_negative_indices=False) for a in (x_parts, g_parts))
        products += product("tpi,tpo->tio", input_tiles(x, AS_IS), output_gradients(g))
        dx_part = filtered(g, u, product, "tpo,tio->tpi", FLIPPED)
        return products, lax.dynamic_update_index_in_dim(dx, dx_part, i, 0, allow_negative_indices=False)

    zero = jnp.zeros(u.shape, upcast_dtype(x.dtype))
    products, dx = lax.fori_loop(0, len(x_parts), part, (zero, to_fill(g, x_parts.shape)))
    return dx.reshape(x.shape), kernel_gradient(products, G, kernel)


convolve.defvjp(forward, backward)


def to_fill(a, shape):
    """What a loop over `a` is to fill, made only when there is an `a`.

    Of zeros, as lax.scan takes, XLA would make copies for all such loops of a step at its start, and keep them.
    """
    return jnp.full(shape, a.ravel()[0], a.dtype)


def parts(a, x, kernel):
    """An array (B, ...), x or of its batch, in parts (N, B / N, ...) whose tiles and products stay in a CPU's caches.

    Only of few channels: of many, reading the kernel's transform once for each part would cost more.
    """
    count, (i, o) = 1, kernel.shape[2:]
    total = 4 * (x.nbytes // i) * (i + o)
    if x.size >= LARGE and i * o <= FEW:
        while len(x) % (2 * count) == 0 and total > 2 * CACHED * count:
            count *= 2
    return a.reshape(count, len(x) // count, *a.shape[1:])


def filtered(x, u, product, channels: str, order):
    """A^T [u * (B^T d B)] A, eq. 8, of a kernel's transform u and the tiles d of x, the products as `channels` says."""
    b, height, width, _ = x.shape
    m = product(channels, input_tiles(x, order), u)
    m = m.reshape(4, 4, b, height // 2, width // 2, -1)
    blocks = [output_transform(row, order) for row in output_transform(m, order)]  # [i][j]: (B, H / 2, W / 2, C)
    y = jnp.stack([jnp.stack(row, axis=3) for row in blocks], axis=2)
    return y.reshape(b, height, width, -1).astype(x.dtype)


def product_for(x):
    """product(equation, a, b) for a layer of x: sixteen or nine products of matrices at once, summed in float32."""
    dtype = upcast_dtype(x.dtype)

    def product(equation, a, b):
        if by_onednn(x):
            return onednn.matmul(a, b, *TRANSPOSED[equation], dtype=dtype)
        return jnp.einsum(equation, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)

    return product


def kernel_transform(kernel, g):
    """G g G^T of each g = kernel[:, :, i, o]: (T, I, O). One product of matrices: XLA's sums would be slower."""
    matrix = jnp.asarray(np.kron(g, g), kernel.dtype)
    return jnp.dot(matrix, kernel.reshape(9, -1), precision=lax.Precision.HIGHEST).reshape(-1, *kernel.shape[2:])


def kernel_gradient(products, g, kernel):
    """G^T m G of the products' gradients m (T, I, O): (3, 3, I, O)."""
    matrix = jnp.asarray(np.kron(g, g).T, products.dtype)
    gradient = jnp.dot(matrix, products.reshape(len(products), -1), precision=lax.Precision.HIGHEST)
    return gradient.reshape(kernel.shape).astype(kernel.dtype)


def input_tiles(x, order):
    """B^T d B of the overlapping 4x4 tiles of x, padded: (16, tiles, channels)."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.stack(input_transform(x, 1, order))
    return jnp.stack(input_transform(rows, 3, order), axis=1).reshape(16, -1, x.shape[-1])


def input_transform(x, axis: int, order):
    """B^T along an axis of 2n + 2: four arrays of n along it."""
    last = x.shape[axis] - 3
    d = [lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(4)]
    v = d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]
    return [v[i] for i in order]


def output_transform(m, order):
    """A^T along the first axis, of four: two arrays."""
    m = [m[i] for i in order]
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def output_gradients(g):
    """A dY A^T of the 2x2 blocks of dY: (16, blocks, channels)."""
    b, height, width, channels = g.shape
    g = g.reshape(b, height // 2, 2, width // 2, 2, channels)

    def rows(p, q):
        return p, p + q, p - q, -q

    z = jnp.stack(rows(g[:, :, 0], g[:, :, 1]))
    return jnp.stack(rows(z[..., 0, :], z[..., 1, :]), axis=1).reshape(16, -1, channels)


@jax.custom_vjp
def convolve_2x2(x, kernel):
    """Cross-correlation of x (B, 2, 2, I) with a kernel (3, 3, I, O).

    Along one axis the outputs k1 x0 + k2 x1 and k0 x0 + k1 x1 are m0 + m1 and m0 + m2 of three products instead of
    four: m0 = k1 (x0 + x1), m1 = (k2 - k1) x1, m2 = (k0 - k1) x0.
    """
    m = product_for(x)("tpi,tio->tpo", factors(x, 1, 0), kernel_transform(kernel, G_2X2))
    return pairs(m, 1, 2).astype(x.dtype)


def forward_2x2(x, kernel):
    return convolve_2x2(x, kernel), (x, kernel)


def backward_2x2(saved, g):
    x, kernel = saved
    product, z = product_for(x), factors(g, 0, 1)
    dx = pairs(product("tpo,tio->tpi", z, kernel_transform(kernel, G_2X2)), 2, 1).astype(x.dtype)
    return dx, kernel_gradient(product("tpi,tpo->tio", factors(x, 1, 0), z), G_2X2, kernel)


convolve_2x2.defvjp(forward_2x2, backward_2x2)


def factors(x, first: int, second: int):
    """Along both axes of the map (x0 + x1, x_first, x_second): (9, B, C)."""

    def along(x, axis):
        x = [lax.index_in_dim(x, i, axis, keepdims=False) for i in (0, 1)]
        return x[0] + x[1], x[first], x[second]

    return jnp.stack([v for row in along(x, 1) for v in along(row, 1)])


def pairs(m, first: int, second: int):
    """Along both axes of the nine (m0 + m_first, m0 + m_second): (B, 2, 2, C)."""
    m = m.reshape(3, 3, *m.shape[1:])
    rows = m[0] + m[first], m[0] + m[second]
    return jnp.stack([jnp.stack([row[0] + row[first], row[0] + row[second]], axis=1) for row in rows], axis=1)
