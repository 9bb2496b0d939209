"""Layers that networks share: PyTorch's, channels last, with every epsilon, padding and layout written out.

A new layer has NaN parameters, so that one that nobody filled cannot go unnoticed. `weights.initialise` and
`weights.load_state_dict` fill them. It computes in the dtype of its input; parameters are cast to it.
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

from jax_ddpm import ops, rng
from jax_ddpm.arrays import upcast_dtype
from jax_ddpm.ops import (
    add_bias,
    convolve,
    matmul,
    transpose_convolve,
)

rematerialising = ContextVar("rematerialising", default=False)


@contextmanager
def remat_blocks(on: bool):
    """Inside, where `on`, the activations within each block are computed again for the gradient instead of kept."""
    token = rematerialising.set(on)
    try:
        yield
    finally:
        rematerialising.reset(token)


def remat_block(call: Callable) -> Callable:
    """Marks the __call__ of a module as that of a block, for `remat_blocks`."""

    @functools.wraps(call)
    def wrapped(*arguments):
        if not rematerialising.get():
            return call(*arguments)
        return ops.checkpoint(call, *arguments)

    return wrapped


class Buffer(nnx.Variable):
    """A constant that belongs to a network's state but is not trained: no gradient, no optimiser, no EMA."""


def unfilled(*shape: int) -> nnx.Param:
    return nnx.Param(np.broadcast_to(np.float32(np.nan), shape))  # takes no memory


class Linear(nnx.Module):
    """y = x W + b; kernel (in, out)."""

    def __init__(self, in_features: int, out_features: int):
        self.kernel = unfilled(in_features, out_features)
        self.bias = unfilled(out_features)

    def __call__(self, x):
        return add_bias(matmul(x, self.kernel[...].astype(x.dtype)), self.bias[...])


class Conv(nnx.Module):
    """K x K convolution, zero padding `padding` on every side; kernel HWIO, x NHWC."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int | None = None
    ):
        self.stride = stride
        self.padding = (kernel_size - 1) // 2 if padding is None else padding
        self.kernel = unfilled(kernel_size, kernel_size, in_channels, out_channels)
        self.bias = unfilled(out_channels)

    def __call__(self, x):
        kernel = self.kernel[...].astype(x.dtype)
        return convolve(x, kernel, self.stride, self.padding, self.bias[...])


class ConvTranspose(nnx.Module):
    """Transposed convolution as in PyTorch, of any kernel, stride and padding; kernel HWIO."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        self.stride, self.padding = stride, padding
        self.kernel = unfilled(kernel_size, kernel_size, in_channels, out_channels)
        self.bias = unfilled(out_channels)

    def __call__(self, x):
        kernel = self.kernel[...].astype(x.dtype)
        return add_bias(transpose_convolve(x, kernel, self.stride, self.padding), self.bias[...])


class ConvTranspose2x2(nnx.Module):
    """Transposed convolution, 2x2, stride 2: every pixel becomes a 2x2 block; kernel HWIO, x NHWC.

    Block pixel (i, j) is x @ kernel[i, j]: in this layout, unlike in a convolution's gradient, nothing is flipped.
    """

    def __init__(self, in_channels: int, out_channels: int):
        self.kernel = unfilled(2, 2, in_channels, out_channels)
        self.bias = unfilled(out_channels)

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
        self.scale = unfilled(num_channels)
        self.bias = unfilled(num_channels)

    def __call__(self, x):
        dtype = upcast_dtype(x.dtype)
        scale, bias = self.scale[...].astype(dtype), self.bias[...].astype(dtype)
        return ops.group_norm(x, scale, bias, self.num_groups, self.epsilon)


def fan_in(layer: Linear | Conv | ConvTranspose | ConvTranspose2x2) -> int:
    """What PyTorch's initialisers call fan-in: for a transposed convolution the *output* channels times k^2."""
    shape = layer.kernel.shape
    return (
        math.prod(shape[:-2]) * shape[-1]
        if isinstance(layer, ConvTranspose | ConvTranspose2x2)
        else math.prod(shape[:-1])
    )


def identity(h):
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

        mask = ops.draw_once(kept, layer)
        return jnp.where(mask, h / (1 - self.rate), 0)
