"""3x3 convolutions, stride 1, padding 1, by minimal filtering: F(2x2, 3x3) of Lavin & Gray 2016, section 4.1.

Each 2x2 block of the output comes from a 4x4 tile of the input by 16 multiplications per pair of channels instead of
36. Sums are in other orders than a direct convolution's; in float32 the error is about twice as large.
"""

import jax
import jax.numpy as jnp
from jax import lax

AS_IS, FLIPPED = (0, 1, 2, 3), (3, 1, 2, 0)  # a kernel flipped in space has the same transform, in this order


def pays(x, kernel, padding: int) -> bool:
    """Whether fewer products outweigh the transforms on a CPU: work per tile I x O against I + O numbers."""
    (_, height, width, i), (k, _, _, o) = x.shape, kernel.shape
    return k == 3 and padding == 1 and height % 2 == width % 2 == 0 and i * o >= 85 * (i + o)


@jax.custom_vjp
def convolve(x, kernel):
    """Cross-correlation of x (B, H, W, I), H and W even, with a kernel (3, 3, I, O)."""
    return filtered(x, kernel, "tpi,tio->tpo", AS_IS)


def forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def backward(saved, g):
    x, kernel = saved
    dx = filtered(g, kernel, "tpo,tio->tpi", FLIPPED)
    products = product("tpi,tpo->tio", input_tiles(x, AS_IS), output_gradients(g))
    rows = jnp.stack(kernel_gradients(products.reshape(4, 4, *kernel.shape[2:])), axis=1)
    return dx, jnp.stack(kernel_gradients(rows), axis=1).astype(kernel.dtype)


convolve.defvjp(forward, backward)


def filtered(x, kernel, channels: str, order):
    """A^T [(G g G^T) * (B^T d B)] A, eq. 8, of the kernel g and the tiles d of x, the products as `channels` says."""
    b, height, width, _ = x.shape
    m = product(channels, input_tiles(x, order), kernel_transform(kernel))
    m = m.reshape(4, 4, b, height // 2, width // 2, -1)
    blocks = [output_transform(row, order) for row in output_transform(m, order)]  # [i][j]: (B, H / 2, W / 2, C)
    y = jnp.stack([jnp.stack(row, axis=3) for row in blocks], axis=2)
    return y.reshape(b, height, width, -1).astype(x.dtype)


def product(equation: str, a, b):
    """Sixteen products of matrices at once; half precision is summed in float32."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)


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


def kernel_transform(kernel):
    """G g G^T: (16, I, O)."""

    def rows(g):
        return g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]

    u = jnp.stack(rows(kernel))
    return jnp.stack(rows(u.swapaxes(0, 1)), axis=1).reshape(16, *kernel.shape[2:])


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


def kernel_gradients(m):
    """G^T along the first axis, of four: three arrays."""
    return m[0] + (m[1] + m[2]) / 2, (m[1] - m[2]) / 2, (m[1] + m[2]) / 2 + m[3]
