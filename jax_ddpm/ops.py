"""The operations that networks are made of, in plain JAX, channels last.

float32 means float32, and sums are taken in float32 or better. XLA is slow at some of these operations on CPUs. There,
`op` takes the function of the same name from `jax_ddpm.cpu.routes`, which computes the same numbers up to rounding but
can be differentiated only once and only in reverse mode. `with plain():` and the environment variable
JAX_DDPM_CPU_ROUTES=0 switch to plain JAX, and so does deleting `jax_ddpm.cpu.routes`.
"""

import functools
import os

import jax
import jax.numpy as jnp
from jax import lax

from jax_ddpm.arrays import upcast, upcast_dtype
from jax_ddpm.process import prepare_process

try:
    from jax_ddpm.cpu import routes
except ImportError:  # nothing here depends on them
    routes = None

prepare_process()

plain_only = jax.make_user_context(default_value=os.environ.get("JAX_DDPM_CPU_ROUTES") == "0")


def plain():
    """`with plain():` makes every operation inside the plain one, as on a GPU.

    For forward-mode and second derivatives through a network on CPUs. Functions under `jax.jit` are traced again.
    """
    return plain_only(True)


def uses_cpu_routes() -> bool:
    """Whether the operations take the routes for CPUs."""
    return routes is not None and jax.default_backend() == "cpu" and not plain_only.value


def op(function):
    """On CPUs the function of the same name in `routes`, elsewhere `function` itself."""
    fast = getattr(routes, function.__name__, function)

    @functools.wraps(function)
    def chosen(*arguments, **settings):
        return (fast if uses_cpu_routes() else function)(*arguments, **settings)

    return chosen


def matmul_precision(dtype) -> lax.Precision | None:
    """float32 means float32: not TF32 on GPUs, not bfloat16 on TPUs. Of bfloat16 there is nothing to lose."""
    return None if dtype == jnp.bfloat16 else lax.Precision.HIGHEST


@op
def matmul(x, kernel):
    """x (..., I) @ kernel (I, O)."""
    return jnp.dot(x, kernel, precision=matmul_precision(x.dtype))


@op
def einsum(equation: str, a, b):
    """jnp.einsum of two arrays that is a product of matrices, or many, as those of attention."""
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype))


@op
def add_bias(x, bias):
    """x (B, ..., C) + bias (C,), in x's precision."""
    return x + cast_and_broadcast(bias, x.shape, x.dtype)


@op
def add_to_pixels(x, vectors):
    """x (B, H, W, C) + vectors (B, C)."""
    return x + cast_and_broadcast(vectors.reshape(len(x), 1, 1, -1), x.shape, x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def cast_and_broadcast(a, shape, dtype):
    """a in this dtype and shape. Its gradient is summed in float32 or better."""
    return jnp.broadcast_to(a.astype(dtype), shape)


@cast_and_broadcast.defjvp
def cast_and_broadcast_tangent(shape, dtype, primals, tangents):
    tangent = tangents[0].astype(
        upcast_dtype(dtype)
    )  # its transpose sums in the dtype of this broadcast
    return cast_and_broadcast(*primals, shape, dtype), jnp.broadcast_to(tangent, shape).astype(dtype)


@op
def concatenate_channels(*arrays):
    """Arrays (B, H, W, C_i) side by side: (B, H, W, sum of C_i)."""
    return jnp.concatenate(arrays, axis=-1)


@op
def silu(x):
    """x sigmoid(x) (Elfwing et al. 2017), computed in float32 or better; for the gradient x alone is kept."""
    return jax.checkpoint(lambda x: jax.nn.silu(upcast(x)).astype(x.dtype), prevent_cse=False)(x)


def convolve(x, kernel, stride: int, padding: int, bias=None):
    """Cross-correlation of x (B, H, W, I) with a kernel (K, K, I, O), plus bias (O,); 1x1 as a product of matrices."""
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        y = matmul(x, kernel[0, 0])
        return y if bias is None else add_bias(y, bias)
    return convolution_nhwc(x, kernel, stride, padding, bias)


@op
def convolution_nhwc(x, kernel, stride: int, padding: int, bias=None):
    """Cross-correlation, any kernel."""
    y = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=matmul_precision(x.dtype),
    )
    return y if bias is None else add_bias(y, bias)


@op
def transpose_convolve(x, kernel, stride: int, padding: int):
    """Transposed convolution of x (B, H, W, I) with a kernel (K, K, I, O): a convolution's gradient for its input."""
    edge = len(kernel) - 1 - padding
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=((edge, edge), (edge, edge)),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=matmul_precision(x.dtype),
    )


@op
def group_norm(x, scale, bias, num_groups: int, epsilon: float):
    """Wu & He 2018, eq. 1 to 3, in the dtype of scale and bias, epsilon inside the root, variance in two passes."""
    groups = x.astype(scale.dtype).reshape(x.shape[0], -1, num_groups, x.shape[-1] // num_groups)
    mean = jnp.mean(groups, axis=(1, 3), keepdims=True)
    variance = jnp.mean(jnp.square(groups - mean), axis=(1, 3), keepdims=True)
    normal = ((groups - mean) * lax.rsqrt(variance + epsilon)).reshape(x.shape)
    return (normal * scale + bias).astype(x.dtype)


@op
def layer_norm(x, scale, bias, epsilon: float):
    """Ba et al. 2016, over all axes of x (B, ...) but the first, in the dtype of scale and bias, in two passes."""
    axes = tuple(range(1, x.ndim))
    h = x.astype(scale.dtype)
    h = h - jnp.mean(h, axis=axes, keepdims=True)
    h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=axes, keepdims=True) + epsilon)
    return (h * scale + bias).astype(x.dtype)


@op
def max_pool_2x2(x):
    """The largest of each 2x2 block. As in PyTorch, the gradient goes to the first of equals, and NaN wins."""

    def larger(a, b):
        return jnp.where((b > a) | (b != b), b, a)

    top = larger(x[:, 0::2, 0::2], x[:, 0::2, 1::2])
    bottom = larger(x[:, 1::2, 0::2], x[:, 1::2, 1::2])
    return larger(top, bottom)


@op
def checkpoint(call, *arguments):
    """call(*arguments), whose activations the gradient computes again."""
    return jax.checkpoint(lambda: call(*arguments))()


@op
def draw_once(draw, key):
    """draw(key), not drawn again for each of its readers."""
    return draw(key)


@op
def materialize(arrays):
    """arrays, not computed again for each of their readers."""
    return arrays


@op
def sum_of_squares(x):
    return jnp.sum(jnp.square(x))


@op
def prng_impl():
    """The implementation of jax.random's threefry2x32."""
    return "threefry2x32"
