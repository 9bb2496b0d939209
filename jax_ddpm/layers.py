"""Layers that networks share: PyTorch's, channels last, with every epsilon, padding and layout written out.

A layer is built empty (its parameters are NaN, so that an unfilled one cannot go unnoticed); `weights.initialise` and
`weights.load_state_dict` fill it. It computes in the dtype of its input; parameters are cast to it.
"""

import functools
import math
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jax_ddpm import cpu, cpu_convolution, cpu_norm, cpu_products, rng
from jax_ddpm.arrays import wide, wide_dtype

rematerialising = ContextVar("rematerialising", default=False)


@contextmanager
def rematerialised(on: bool):
    """Inside, where `on`, the activations within each block are computed again for the gradient instead of kept."""
    token = rematerialising.set(on)
    try:
        yield
    finally:
        rematerialising.reset(token)


def remat_block(call: Callable) -> Callable:
    """Marks the __call__ of a module as that of a block, for `rematerialised`."""

    @functools.wraps(call)
    def wrapped(*arguments):
        if not rematerialising.get():
            return call(*arguments)
        return cpu.rematerialised(call, *arguments) if cpu.at_work() else jax.checkpoint(lambda: call(*arguments))()

    return wrapped


def exact(dtype) -> lax.Precision | None:
    """float32 means float32: not TF32 on GPUs, not bfloat16 on TPUs. Of bfloat16 there is nothing to lose."""
    return None if dtype == jnp.bfloat16 else lax.Precision.HIGHEST


class Buffer(nnx.Variable):
    """A constant that belongs to a network's state but is not trained: no gradient, no optimiser, no EMA."""


def empty(*shape: int) -> nnx.Param:
    return nnx.Param(np.broadcast_to(np.float32(np.nan), shape))  # takes no memory


def matmul(x, kernel):
    """x (..., I) @ kernel (I, O)."""
    return cpu_products.matmul(x, kernel) if cpu.at_work() else jnp.dot(x, kernel, precision=exact(x.dtype))


def einsum(equation: str, a, b):
    """jnp.einsum of two arrays that is a product of matrices, or many, as those of attention."""
    if cpu.at_work():
        return cpu_products.einsum(equation, a, b)
    return jnp.einsum(equation, a, b, precision=exact(a.dtype))


def add_bias(x, bias):
    """x (B, ..., C) + bias (C,), in x's precision."""
    return cpu.add_bias(x, bias.astype(x.dtype)) if cpu.at_work() else x + broadcast(bias, x.shape, x.dtype)


def add_to_pixels(x, vectors):
    """x (B, H, W, C) + vectors (B, C)."""
    if cpu.at_work():
        return cpu.add_to_pixels(x, vectors)
    return x + broadcast(vectors.reshape(len(x), 1, 1, -1), x.shape, x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def broadcast(a, shape, dtype):
    """a in this dtype and shape. Its gradient is summed in float32 or better."""
    return jnp.broadcast_to(a.astype(dtype), shape)


@broadcast.defjvp
def broadcast_tangent(shape, dtype, primals, tangents):
    tangent = tangents[0].astype(wide_dtype(dtype))  # the gradient's sum is in the dtype in which this is broadcast
    return broadcast(*primals, shape, dtype), jnp.broadcast_to(tangent, shape).astype(dtype)


def concatenate_channels(*arrays):
    """Arrays (B, H, W, C_i) side by side: (B, H, W, sum of C_i)."""
    return cpu.concatenate_channels(*arrays) if cpu.at_work() else jnp.concatenate(arrays, axis=-1)


def silu(x):
    """x sigmoid(x) (Elfwing et al. 2017), computed in float32 or better; for the gradient x alone is kept."""
    if cpu.at_work():
        return cpu.silu(x)
    return jax.checkpoint(lambda x: jax.nn.silu(wide(x)).astype(x.dtype), prevent_cse=False)(x)


class Linear(nnx.Module):
    """y = x W + b; kernel (in, out)."""

    def __init__(self, in_features: int, out_features: int):
        self.kernel = empty(in_features, out_features)
        self.bias = empty(out_features)

    def __call__(self, x):
        return add_bias(matmul(x, self.kernel[...].astype(x.dtype)), self.bias[...])


class Conv(nnx.Module):
    """K x K convolution, zero padding `padding` on every side; kernel HWIO, x NHWC."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int | None = None
    ):
        self.stride = stride
        self.padding = (kernel_size - 1) // 2 if padding is None else padding
        self.kernel = empty(kernel_size, kernel_size, in_channels, out_channels)
        self.bias = empty(out_channels)

    def __call__(self, x):
        kernel = self.kernel[...].astype(x.dtype)
        return convolve(x, kernel, self.stride, self.padding, self.bias[...])


def convolve(x, kernel, stride: int, padding: int, bias=None):
    """Cross-correlation of x (B, H, W, I) with a kernel (K, K, I, O), plus bias (O,), by what is fast for the shape."""
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        y = matmul(x, kernel[0, 0])
    elif cpu.at_work():
        return cpu_convolution.convolve(x, kernel, stride, padding, None if bias is None else bias.astype(x.dtype))
    else:
        y = correlate(x, kernel, stride, padding)
    return y if bias is None else add_bias(y, bias)


def correlate(x, kernel, stride: int, padding: int):
    """The same without a bias, by XLA's own route."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=exact(x.dtype),
    )


class ConvTranspose(nnx.Module):
    """Transposed convolution as in PyTorch, of any kernel, stride and padding; kernel HWIO."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        self.stride, self.padding = stride, padding
        self.kernel = empty(kernel_size, kernel_size, in_channels, out_channels)
        self.bias = empty(out_channels)

    def __call__(self, x):
        kernel = self.kernel[...].astype(x.dtype)
        return add_bias(transpose_convolve(x, kernel, self.stride, self.padding), self.bias[...])


def transpose_convolve(x, kernel, stride: int, padding: int):
    """Transposed convolution of x (B, H, W, I) with a kernel (K, K, I, O): a convolution's gradient for its input."""
    if cpu.at_work():
        size = tuple((n - 1) * stride - 2 * padding + len(kernel) for n in x.shape[1:3])
        return cpu_convolution.transpose_convolve(x, kernel.swapaxes(2, 3), stride, padding, size)
    edge = len(kernel) - 1 - padding
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=((edge, edge), (edge, edge)),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=exact(x.dtype),
    )


class ConvTranspose2x2(nnx.Module):
    """Transposed convolution, 2x2, stride 2: every pixel becomes a 2x2 block; kernel HWIO, x NHWC.

    Block pixel (i, j) is x @ kernel[i, j]: in this layout, unlike in a convolution's gradient, nothing is flipped.
    """

    def __init__(self, in_channels: int, out_channels: int):
        self.kernel = empty(2, 2, in_channels, out_channels)
        self.bias = empty(out_channels)

    def __call__(self, x):
        b, h, w, c = x.shape
        kernel = self.kernel[...].astype(x.dtype).transpose(2, 0, 1, 3).reshape(c, -1)  # (C, i j D)
        rows = matmul(x, kernel).reshape(b, h, w, 2, -1)  # (B, H, W, i, j D)
        return add_bias(rows.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, -1), self.bias[...])


class GroupNorm(nnx.Module):
    """Wu & He 2018, eq. 1 to 3, statistics in float32 or better, epsilon inside the root, variance in two passes."""

    def __init__(self, num_groups: int, num_channels: int, epsilon: float = 1e-5):
        self.num_groups = num_groups
        self.epsilon = epsilon
        self.scale = empty(num_channels)
        self.bias = empty(num_channels)

    def __call__(self, x):
        dtype = wide_dtype(x.dtype)
        if cpu.at_work():
            scale, bias = self.scale[...].astype(dtype), self.bias[...].astype(dtype)
            return cpu_norm.group_norm(x, scale, bias, self.num_groups, self.epsilon)
        groups = x.astype(dtype).reshape(x.shape[0], -1, self.num_groups, x.shape[-1] // self.num_groups)
        mean = jnp.mean(groups, axis=(1, 3), keepdims=True)
        variance = jnp.mean(jnp.square(groups - mean), axis=(1, 3), keepdims=True)
        normal = ((groups - mean) * lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (normal * self.scale[...].astype(dtype) + self.bias[...].astype(dtype)).astype(x.dtype)


def layer_norm(x, scale, bias, epsilon: float):
    """Ba et al. 2016, over all axes of x (B, ...) but the first, variance in two passes.

    Computed in the dtype of scale and bias; the result has x's.
    """
    if cpu.at_work():
        return cpu_norm.layer_norm(x, scale, bias, epsilon)
    axes = tuple(range(1, x.ndim))
    h = x.astype(scale.dtype)
    h = h - jnp.mean(h, axis=axes, keepdims=True)
    h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=axes, keepdims=True) + epsilon)
    return (h * scale + bias).astype(x.dtype)


def max_pool_2x2(x):
    """The largest of each 2x2 block. As in PyTorch, the gradient goes to the first of equals, and NaN wins."""
    if cpu.at_work():
        return cpu.max_pool_2x2(x)

    def larger(a, b):
        return jnp.where((b > a) | (b != b), b, a)

    top = larger(x[:, 0::2, 0::2], x[:, 0::2, 1::2])
    bottom = larger(x[:, 1::2, 0::2], x[:, 1::2, 1::2])
    return larger(top, bottom)


def fan_in(layer: Linear | Conv | ConvTranspose | ConvTranspose2x2) -> int:
    """What PyTorch's initialisers call fan-in: for a transposed convolution the *output* channels times k^2."""
    shape = layer.kernel.shape
    return (
        math.prod(shape[:-2]) * shape[-1]
        if isinstance(layer, ConvTranspose | ConvTranspose2x2)
        else math.prod(shape[:-1])
    )


def keep(h):
    """No dropout."""
    return h


class Dropout:
    """Dropout of one forward pass (Srivastava et al. 2014): a value is 0 with probability `rate`, else over 1 - rate.

    Call number n (the n-th dropout layer on the way) draws image i's mask, (H, W, C), at (DROPOUT, step, n, i), i being
    the image's place in the whole batch: masks do not depend on how a batch is split.
    """

    def __init__(self, rate: float, seed: int, step, images):
        """images: integers (B,), the places of the images in the batch."""
        self.rate, self.images = rate, images
        self.key = rng.key(seed, rng.DROPOUT, step)
        self.calls = 0

    def __call__(self, h):
        layer = jax.random.fold_in(self.key, self.calls)
        self.calls += 1

        def kept(layer):
            keys = jax.vmap(lambda image: jax.random.fold_in(layer, image))(jnp.asarray(self.images, jnp.uint32))
            u = jax.vmap(lambda k: jax.random.uniform(k, h.shape[1:], jnp.float32))(keys)
            return u >= jnp.float32(self.rate)

        mask = cpu.drawn_once(kept, layer) if cpu.at_work() else kept(layer)
        return jnp.where(mask, h / (1 - self.rate), 0)
