"""Layers that networks share. They equal PyTorch's, but are channels last.

The parameters of a new layer are NaN, so that an unfilled one is noticed. `weights.initialise` and
`weights.load_state_dict` fill them. A layer computes in the dtype of its input and casts its parameters to it.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jax_ddpm import ops, rng
from jax_ddpm.arrays import upcast_dtype
from jax_ddpm.ops import add_bias, convolve, matmul, transpose_convolve
from jax_ddpm.spec.errors import UserError

uses_remat = ContextVar("uses_remat", default=False)
casts_of_networks: ContextVar[dict] = ContextVar("casts_of_networks", default={})  # noqa: B039 - never changed
statistics_of_the_batch: ContextVar[list | None] = ContextVar("statistics_of_the_batch", default=None)


@contextmanager
def remat_blocks(on: bool):
    """Context manager: if `on`, blocks recompute their activations in the backward pass (gradient checkpointing)."""
    token = uses_remat.set(on)
    try:
        yield
    finally:
        uses_remat.reset(token)


def remat_block(call: Callable) -> Callable:
    """Decorator for a block's __call__: under `remat_blocks(True)` it recomputes its activations in backward passes."""

    @functools.wraps(call)
    def wrapped(*arguments):
        if not uses_remat.get():
            return call(*arguments)
        statistics = statistics_of_the_batch.get()
        if statistics is None:
            return ops.checkpoint(call, *arguments)
        layers = []

        def call_and_statistics(*arguments):
            with batch_statistics() as found:
                y = call(*arguments)
            layers.extend(layer for layer, *_ in found)
            return y, [values for _, *values in found]

        y, values = ops.checkpoint(call_and_statistics, *arguments)
        statistics += [(layer, *new) for layer, new in zip(layers, values, strict=True)]
        return y

    return wrapped


class Buffer(nnx.Variable):
    """A constant in a network's state that is not trained: it has no gradient, optimiser state or EMA."""


class Statistic(Buffer):
    """A running statistic of BatchNorm: not trained, but replaced by each training step."""


@contextmanager
def batch_statistics() -> Iterator[list]:
    """Context manager for a forward pass of training: BatchNorm normalises with the statistics of the batch.

    Yields a list, to which each such layer adds (layer, new running mean, new running variance).
    """
    found: list = []
    token = statistics_of_the_batch.set(found)
    try:
        yield found
    finally:
        statistics_of_the_batch.reset(token)


def unfilled(*shape: int) -> nnx.Param:
    """A parameter of NaN."""
    return nnx.Param(np.broadcast_to(np.float32(np.nan), shape))  # one element in memory


def cast(variable: nnx.Param, dtype):
    """The values of a parameter in the dtype of a layer's input. Inside `cast_once`: those that were cast there."""
    values = casts_of_networks.get().get((id(variable), jnp.dtype(dtype)))
    return variable[...].astype(dtype) if values is None else values


@contextmanager
def cast_once(*networks: nnx.Module | None):
    """Context manager around a loop over calls of the networks: weights are cast to their activations' dtype before it.

    XLA does not move these casts out of a loop. Those that no layer uses are not computed.
    """
    casts = {}
    for network in networks:
        dtype = getattr(network, "dtype", None)
        if dtype is not None:
            parameters = (node for _, node in nnx.iter_graph(network) if isinstance(node, nnx.Param))
            casts |= {(id(node), jnp.dtype(dtype)): node[...].astype(dtype) for node in parameters}
    token = casts_of_networks.set(casts)
    try:
        yield
    finally:
        casts_of_networks.reset(token)


class Linear(nnx.Module):
    """y = x W + b; kernel (in, out)."""

    def __init__(self, in_features: int, out_features: int):
        self.kernel = unfilled(in_features, out_features)
        self.bias = unfilled(out_features)

    def __call__(self, x):
        return add_bias(matmul(x, cast(self.kernel, x.dtype)), self.bias[...])


class Embedding(nnx.Module):
    """Row number i of a table; embedding (rows, features). An integer outside [0, rows) gives zeros.

    Floats (B, rows) give the sum of the rows with these weights.
    """

    def __init__(self, rows: int, features: int):
        self.embedding = unfilled(rows, features)

    def __call__(self, indices):
        rows = self.embedding.shape[0]
        if jnp.issubdtype(indices.dtype, jnp.floating):
            return matmul(indices.astype(self.embedding.dtype), self.embedding[...])
        # A one-hot product: the gradient of a gather sums in an order that changes from run to run on GPUs.
        return matmul(jax.nn.one_hot(indices, rows, dtype=self.embedding.dtype), self.embedding[...])


def label_embedding(num_classes: int, null_label: bool, features: int) -> Embedding | None:
    """A row for each class and, last, one for the null label if `null_label`; None without classes."""
    return Embedding(num_classes + null_label, features) if num_classes else None


def add_label(time, labels, embedding: Callable | None, null_index: int | None):
    """The time vectors (B, D) plus the embeddings of the labels (Dhariwal & Nichol 2021, section 3.1).

    labels: integers (B,), floats (B, rows) for mixtures of labels, or None: then the null label for all. embedding:
    labels -> (B, D); None for a network without classes. null_index: the null label, or None if there is none. Raises
    UserError for labels without classes, and for no labels where there is no null label.
    """
    if embedding is None:
        if labels is not None:
            raise UserError("This network has no classes, and takes no labels: leave labels out.")
        return time
    if labels is None:
        if null_index is None:
            raise UserError("This network needs a label for each image, because it has no null label: give labels.")
        labels = jnp.full(time.shape[:1], null_index, jnp.int32)
    return time + embedding(labels).astype(time.dtype)


class Conv(nnx.Module):
    """K x K convolution with zero padding on every side, by default (K - 1) // 2. Kernel HWIO, x NHWC."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int | None = None
    ):
        self.stride = stride
        self.padding = (kernel_size - 1) // 2 if padding is None else padding
        self.kernel = unfilled(kernel_size, kernel_size, in_channels, out_channels)
        self.bias = unfilled(out_channels)

    def __call__(self, x):
        kernel = cast(self.kernel, x.dtype)
        return convolve(x, kernel, self.stride, self.padding, self.bias[...])


class ConvTranspose(nnx.Module):
    """Transposed convolution as in PyTorch. Kernel HWIO, x NHWC."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        self.stride, self.padding = stride, padding
        self.kernel = unfilled(kernel_size, kernel_size, in_channels, out_channels)
        self.bias = unfilled(out_channels)

    def __call__(self, x):
        kernel = cast(self.kernel, x.dtype)
        return add_bias(transpose_convolve(x, kernel, self.stride, self.padding), self.bias[...])


class ConvTranspose2x2(nnx.Module):
    """Transposed 2x2 convolution with stride 2, as one matrix product. Kernel HWIO, x NHWC.

    Every pixel of x becomes a 2x2 block: pixel (i, j) of the block is x @ kernel[i, j].
    """

    def __init__(self, in_channels: int, out_channels: int):
        self.kernel = unfilled(2, 2, in_channels, out_channels)
        self.bias = unfilled(out_channels)

    def __call__(self, x):
        b, h, w, c = x.shape
        kernel = cast(self.kernel, x.dtype).transpose(2, 0, 1, 3).reshape(c, -1)  # (C, i j D)
        rows = matmul(x, kernel).reshape(b, h, w, 2, -1)  # (B, H, W, i, j D)
        return add_bias(rows.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, -1), self.bias[...])


class GroupNorm(nnx.Module):
    """GroupNorm (Wu & He 2018), computed in float32 or float64. epsilon is added inside the square root."""

    def __init__(self, num_groups: int, num_channels: int, epsilon: float = 1e-5):
        self.num_groups = num_groups
        self.epsilon = epsilon
        self.scale = unfilled(num_channels)
        self.bias = unfilled(num_channels)

    def __call__(self, x):
        dtype = upcast_dtype(x.dtype)
        scale, bias = self.scale[...].astype(dtype), self.bias[...].astype(dtype)
        return ops.group_norm(x, scale, bias, self.num_groups, self.epsilon)


class BatchNorm(nnx.Module):
    """BatchNorm (Ioffe & Szegedy 2015, algorithm 1), computed in float32 or float64, with PyTorch's constants.

    It normalises with the running mean and variance. Inside `batch_statistics` it normalises with those of the batch,
    which is the whole batch also on several devices. The running variance averages unbiased variances. A layer is
    called once in a forward pass.
    """

    def __init__(self, num_channels: int, epsilon: float = 1e-5, momentum: float = 0.1):
        self.epsilon, self.momentum = epsilon, momentum
        self.scale = unfilled(num_channels)
        self.bias = unfilled(num_channels)
        self.mean = Statistic(np.zeros(num_channels, np.float32))
        self.variance = Statistic(np.ones(num_channels, np.float32))

    def __call__(self, x):
        dtype = upcast_dtype(x.dtype)
        h, found = x.astype(dtype), statistics_of_the_batch.get()
        mean, variance = self.mean[...].astype(dtype), self.variance[...].astype(dtype)
        if found is not None:
            old = mean, variance
            mean = jnp.mean(h, axis=(0, 1, 2))
            variance = jnp.mean(jnp.square(h - mean), axis=(0, 1, 2))
            count = h.size // h.shape[-1]
            unbiased = variance * (count / max(count - 1, 1))
            new = [(1 - self.momentum) * a + self.momentum * b for a, b in zip(old, (mean, unbiased), strict=True)]
            found.append((self, *map(lax.stop_gradient, new)))
        h = (h - mean) * lax.rsqrt(variance + self.epsilon)
        return (h * self.scale[...].astype(dtype) + self.bias[...].astype(dtype)).astype(x.dtype)


def store_statistics(found: list) -> None:
    """Give BatchNorm layers the running statistics that `batch_statistics` found, in place."""
    for layer, mean, variance in found:
        layer.mean = Statistic(mean.astype(layer.mean.dtype))
        layer.variance = Statistic(variance.astype(layer.variance.dtype))


def fan_in(layer: nnx.Module) -> int:
    """The fan-in of PyTorch's initialisers. A transposed convolution's is its number of *output* channels times k^2."""
    shape = layer.kernel.shape
    return (
        math.prod(shape[:-2]) * shape[-1]
        if isinstance(layer, ConvTranspose | ConvTranspose2x2)
        else math.prod(shape[:-1])
    )


def identity(h):
    """No dropout."""
    return h


FIRST_PASS = 1 << 16  # n of the first dropout call in the pass that predicts x_0 for self-conditioning


class Dropout:
    """Dropout of one forward pass (Srivastava et al. 2014).

    A value becomes 0 with probability `rate`, else it is divided by 1 - rate. Call n draws the mask (H, W, C) of image
    i from the address (DROPOUT, step, n, i). i is the index in the whole batch, so the masks do not depend on how the
    batch is split.
    """

    def __init__(self, rate: float, seed: int, step, images, first_call: int = 0):
        """images: integers (B,), the indices of the images in the whole batch. first_call: n of the first call."""
        self.rate, self.images = rate, images
        self.key = rng.key(seed, rng.DROPOUT, step)
        self.calls = first_call

    def __call__(self, h):
        layer = jax.random.fold_in(self.key, self.calls)
        self.calls += 1

        def draw_mask(layer):
            keys = jax.vmap(lambda image: jax.random.fold_in(layer, image))(jnp.asarray(self.images, jnp.uint32))
            u = jax.vmap(lambda k: jax.random.uniform(k, h.shape[1:], jnp.float32))(keys)
            return u >= jnp.float32(self.rate)

        mask = ops.draw_once(draw_mask, layer)
        return jnp.where(mask, h / (1 - self.rate), 0)
