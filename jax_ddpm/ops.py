"""The operations of the networks in plain JAX, channels last. Sums are computed in float32 or float64.

XLA compiles some of them to slow code on CPUs. There, `op` replaces a function by the one with the same name in
`jax_ddpm.cpu.routes`. Its results are equal up to rounding, but it can be differentiated only once, in reverse mode.
`with plain():` and the environment variable JAX_DDPM_CPU_ROUTES=0 switch to plain JAX. So does deleting
`jax_ddpm/cpu/routes.py`.
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
except ImportError:  # deleted: everything works without them
    routes = None

prepare_process()

plain_only = jax.make_user_context(default_value=os.environ.get("JAX_DDPM_CPU_ROUTES") == "0")
target_platform = jax.make_user_context(default_value=None)
uses_tf32 = jax.make_user_context(default_value=False)


def plain():
    """Context manager: all operations inside use plain JAX, as on a GPU.

    On CPUs, forward-mode derivatives and second derivatives of a network need it. Functions under `jax.jit` are traced
    again.
    """
    return plain_only(True)


def compile_for(platform: str):
    """Context manager: programs that are traced inside are those for "cpu", "gpu" or "tpu", whatever JAX runs on."""
    return target_platform(platform)


def platform() -> str:
    """The platform that programs are traced for: that of `compile_for`, else JAX's default one."""
    return target_platform.value or jax.default_backend()


def uses_cpu_routes() -> bool:
    """Whether the operations use `jax_ddpm.cpu.routes`."""
    return routes is not None and platform() == "cpu" and not plain_only.value


def op(function):
    """Decorator: on CPUs call the function with the same name in `routes`, elsewhere `function` itself."""
    cpu_function = getattr(routes, function.__name__, function)

    @functools.wraps(function)
    def dispatch(*arguments, **settings):
        return (cpu_function if uses_cpu_routes() else function)(*arguments, **settings)

    return dispatch


def tf32():
    """Context manager: products of float32 that are traced inside are in TF32 on GPUs, in three passes on TPUs.

    CPUs compute them in float32.
    """
    return uses_tf32(True)


def matmul_precision(dtype) -> lax.Precision | None:
    """The highest precision, or None for bfloat16. Without it, GPUs compute float32 in TF32 and TPUs in bfloat16.

    Inside `tf32()`, float32 has the precision HIGH: TF32 on GPUs, three bfloat16 passes on TPUs.
    """
    if dtype == jnp.bfloat16:
        return None
    return lax.Precision.HIGH if uses_tf32.value and dtype == jnp.float32 else lax.Precision.HIGHEST


@op
def matmul(x, kernel):
    """x (..., I) @ kernel (I, O)."""
    return jnp.dot(x, kernel, precision=matmul_precision(x.dtype))


@op
def einsum(equation: str, a, b):
    """jnp.einsum of two arrays. `equation` must be a batched matrix product, such as those of attention."""
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype))


@op
def add_bias(x, bias):
    """x (B, ..., C) + bias (C,), in x's dtype."""
    return x + cast_and_broadcast(bias, x.shape, x.dtype)


@op
def add_to_pixels(x, vectors):
    """x (B, H, W, C) + vectors (B, C)."""
    return x + cast_and_broadcast(vectors.reshape(x.shape[0], 1, 1, -1), x.shape, x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def cast_and_broadcast(a, shape, dtype):
    """a, cast to `dtype` and broadcast to `shape`. Its gradient, a sum, is computed in float32 or float64."""
    return jnp.broadcast_to(a.astype(dtype), shape)


@cast_and_broadcast.defjvp
def cast_and_broadcast_tangent(shape, dtype, primals, tangents):
    # The transpose of this broadcast is a sum. It is computed in the dtype of `tangent`.
    tangent = tangents[0].astype(upcast_dtype(dtype))
    return cast_and_broadcast(*primals, shape, dtype), jnp.broadcast_to(tangent, shape).astype(dtype)


@op
def concatenate_channels(*arrays):
    """Arrays (B, H, W, C_i) side by side: (B, H, W, sum of C_i)."""
    return jnp.concatenate(arrays, axis=-1)


@op
def silu(x):
    """x sigmoid(x) (Elfwing et al. 2017), computed in float32 or float64. The backward pass keeps only x."""
    return jax.checkpoint(lambda x: jax.nn.silu(upcast(x)).astype(x.dtype), prevent_cse=False)(x)


def gelu(x):
    """x Phi(x) with the exact normal distribution Phi (Hendrycks & Gimpel 2016), computed in float32 or float64."""
    return jax.checkpoint(lambda x: jax.nn.gelu(upcast(x), approximate=False).astype(x.dtype), prevent_cse=False)(x)


def mish(x):
    """x tanh(log(1 + e^x)) (Misra 2019), computed in float32 or float64. The backward pass keeps only x."""
    return jax.checkpoint(lambda x: jax.nn.mish(upcast(x)).astype(x.dtype), prevent_cse=False)(x)


def relu(x):
    """max(x, 0)."""
    return jax.nn.relu(x)


def convolve(x, kernel, stride: int, padding: int, bias=None):
    """Cross-correlation of x (B, H, W, I) with a kernel (K, K, I, O), plus a bias (O,). 1x1: a matrix product."""
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        y = matmul(x, kernel[0, 0])
        return y if bias is None else add_bias(y, bias)
    return convolution_nhwc(x, kernel, stride, padding, bias)


@op
def convolution_nhwc(x, kernel, stride: int, padding: int, bias=None):
    """`convolve` for any kernel size."""
    if platform() == "tpu" and (x.shape[1:3], kernel.shape[:2], stride, padding) == ((2, 2), (3, 3), 1, 1):
        y = convolve_2x2(x, kernel)
    else:
        y = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=matmul_precision(x.dtype),
        )
    return y if bias is None else add_bias(y, bias)


def convolve_2x2(x, kernel):
    """Cross-correlation of x (B, 2, 2, I) with a kernel (3, 3, I, O), padding 1: (B, 2, 2, O).

    Along one axis, y_p is the sum over i of x_i kernel_(i + 1 - p), so y_(1 - p) is that of x_i kernel_(i + p): x
    slides over the kernel as over an image, and the pixels come out in reverse order. On TPUs, XLA exchanges the two as
    well, because x is smaller. But it reverses the kernel for that, in every call.
    """
    y = lax.conv_general_dilated(
        kernel,
        x,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("HWCN", "OHWI", "CHWN"),  # C of the result: images
        precision=matmul_precision(x.dtype),
    )
    return y[:, ::-1, ::-1]


@op
def transpose_convolve(x, kernel, stride: int, padding: int):
    """Transposed convolution of x (B, H, W, I) with a kernel (K, K, I, O).

    Returns (B, H', W', O) with PyTorch's size H' = (H - 1) stride - 2 padding + K.
    """
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
    """GroupNorm (Wu & He 2018, eq. 1 to 3) of x (B, ..., C), computed in the dtype of scale and bias (C,).

    epsilon is added inside the square root. The variance is that of x - mean, in a second pass.
    """
    groups = x.astype(scale.dtype).reshape(x.shape[0], -1, num_groups, x.shape[-1] // num_groups)
    mean = jnp.mean(groups, axis=(1, 3), keepdims=True)
    variance = jnp.mean(jnp.square(groups - mean), axis=(1, 3), keepdims=True)
    normal = ((groups - mean) * lax.rsqrt(variance + epsilon)).reshape(x.shape)
    return (normal * scale + bias).astype(x.dtype)


@op
def layer_norm(x, scale, bias, epsilon: float):
    """LayerNorm (Ba et al. 2016) of x (B, ...) over all axes but the first, computed in the dtype of scale and bias.

    scale and bias have the shape of x without B. The variance is that of x - mean, in a second pass.
    """
    axes = tuple(range(1, x.ndim))
    h = x.astype(scale.dtype)
    h = h - jnp.mean(h, axis=axes, keepdims=True)
    h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=axes, keepdims=True) + epsilon)
    return (h * scale + bias).astype(x.dtype)


@op
def max_pool_2x2(x):
    """2x2 max pooling. As in PyTorch, the gradient goes to the first of equal values, and NaN is the largest value."""

    def maximum(a, b):
        return jnp.where((b > a) | (b != b), b, a)

    top = maximum(x[:, 0::2, 0::2], x[:, 0::2, 1::2])
    bottom = maximum(x[:, 1::2, 0::2], x[:, 1::2, 1::2])
    return maximum(top, bottom)


def average_pool_2x2(x):
    """Mean of each 2x2 block of x (B, H, W, C): (B, H/2, W/2, C). Computed in float32 or float64."""
    b, h, w, c = x.shape
    return jnp.mean(upcast(x).reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4)).astype(x.dtype)


def repeat_2x2(x):
    """x (B, H, W, C) with every pixel repeated in a 2x2 block: (B, 2H, 2W, C)."""
    b, h, w, c = x.shape
    blocks = cast_and_broadcast(x.reshape(b, h, 1, w, 1, c), (b, h, 2, w, 2, c), x.dtype)
    return blocks.reshape(b, 2 * h, 2 * w, c)


@op
def checkpoint(call, *arguments):
    """call(*arguments), which recomputes its activations in the backward pass (gradient checkpointing)."""
    return jax.checkpoint(lambda: call(*arguments))()


@op
def draw_once(draw, key):
    """draw(key). On CPUs, XLA does not repeat the draw for each operation that uses it."""
    return draw(key)


@op
def materialize(arrays):
    """The arrays. On CPUs, XLA does not recompute them for each operation that uses them."""
    return arrays


@op
def sum_of_squares(x):
    """Sum of x squared, a scalar."""
    return jnp.sum(jnp.square(x))


@op
def prng_impl():
    """Which implementation of threefry2x32 jax.random uses, as the argument `impl` of jax.random.key."""
    return "threefry2x32"
