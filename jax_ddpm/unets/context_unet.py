"""ContextUNet: the UNet of TeaPearce's Conditional_Diffusion_MNIST, in which labels and time scale and shift features.

6,585,601 trained parameters with the default settings and one image channel.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int, Real

from jax_ddpm.arrays import Array, upcast
from jax_ddpm.layers import BatchNorm, Conv, ConvTranspose, ConvTranspose2x2, GroupNorm, Linear, remat_block
from jax_ddpm.ops import add_to_pixels, concatenate_channels, gelu, max_pool_2x2, relu
from jax_ddpm.spec.errors import UserError


class ConvBlock(nnx.Module):
    """Twice 3x3 convolution, BatchNorm and GELU.

    With `residual`, plus x, or plus the first activation where the channels change, all divided by 1.414.
    """

    def __init__(self, in_channels: int, out_channels: int, residual: bool = False):
        self.residual, self.same_channels = residual, in_channels == out_channels
        self.conv1 = Conv(in_channels, out_channels, 3)
        self.norm1 = BatchNorm(out_channels)
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.norm2 = BatchNorm(out_channels)

    @remat_block
    def __call__(self, x):
        first = gelu(self.norm1(self.conv1(x)))
        second = gelu(self.norm2(self.conv2(first)))
        return ((x if self.same_channels else first) + second) / 1.414 if self.residual else second


class UpBlock(nnx.Module):
    """Concatenates the skip, doubles the size, then two blocks."""

    def __init__(self, in_channels: int, out_channels: int):
        self.conv = ConvTranspose2x2(in_channels, out_channels)
        self.block1 = ConvBlock(out_channels, out_channels)
        self.block2 = ConvBlock(out_channels, out_channels)

    def __call__(self, x, skip):
        return self.block2(self.block1(self.conv(concatenate_channels(x, skip))))


class Embedding(nnx.Module):
    """Linear(GELU(Linear(x))), (B, in_features) to (B, features)."""

    def __init__(self, in_features: int, features: int):
        self.linear1 = Linear(in_features, features)
        self.linear2 = Linear(features, features)

    def __call__(self, x):
        return self.linear2(gelu(self.linear1(x)))


def contexts(labels, num_classes: int, batch: int, null_index: int | None, dtype):
    """Labels as vectors (B, num_classes): minus the one-hot vector of a class, zeros for the null label.

    The original means to multiply kept labels by 1 and dropped ones by 0. It multiplies by -(1 - dropped), hence the
    minus. labels: integers (B,), floats (B, rows) that mix labels, or None. Raises UserError for None without a null
    label.
    """
    if labels is None:
        if null_index is None:
            raise UserError("This network needs a label for each image, because it has no null label: give labels.")
        return jnp.zeros((batch, num_classes), dtype)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return -labels[:, :num_classes].astype(dtype)
    return -jax.nn.one_hot(labels, num_classes, dtype=dtype)


def average_pool(x, size: int):
    """Mean of each size x size block of x (B, H, W, C), computed in float32 or float64."""
    b, h, w, c = x.shape
    return jnp.mean(upcast(x).reshape(b, h // size, size, w // size, size, c), axis=(2, 4)).astype(x.dtype)


class ContextUNet(nnx.Module):
    """(x, t, labels) -> prediction of x's shape.

    x: (B, H, W, image_channels), about within [0, 1], H and W multiples of 4 * pool. t: floats (B,), (t + 1) / T.
    `labels`: integers (B,), floats (B, K) that mix labels, or None for the null label. Activations have the dtype
    `dtype` (default: that of the parameters). The prediction has the dtype of the parameters.
    """

    def __init__(
        self,
        image_channels: int = 1,
        channels: int = 128,
        pool: int = 7,
        num_classes: int = 10,
        null_label: bool = True,
        dtype=None,
    ):
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.pool, self.num_classes, n = pool, num_classes, channels
        self.input = ConvBlock(image_channels, n, residual=True)
        self.down1 = ConvBlock(n, n)
        self.down2 = ConvBlock(n, 2 * n)
        self.time_embedding1 = Embedding(1, 2 * n)
        self.time_embedding2 = Embedding(1, n)
        self.context_embedding1 = Embedding(num_classes, 2 * n)
        self.context_embedding2 = Embedding(num_classes, n)
        self.up0 = ConvTranspose(2 * n, 2 * n, pool, stride=pool)
        self.up_norm = GroupNorm(8, 2 * n)
        self.up1 = UpBlock(4 * n, n)
        self.up2 = UpBlock(2 * n, n)
        self.output1 = Conv(2 * n, n, 3)
        self.output_norm = GroupNorm(8, n)
        self.output2 = Conv(n, image_channels, 3)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Real[Array, "b"],
        labels: Int[Array, "b"] | Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        result_dtype = self.output2.kernel.dtype
        dtype = self.dtype or result_dtype
        time = t[:, None].astype(result_dtype)
        context = contexts(labels, self.num_classes, x.shape[0], self.null_index, result_dtype)
        scale1, shift1 = self.context_embedding1(context).astype(dtype), self.time_embedding1(time).astype(dtype)
        scale2, shift2 = self.context_embedding2(context).astype(dtype), self.time_embedding2(time).astype(dtype)
        h0 = self.input(x.astype(dtype))
        h1 = max_pool_2x2(self.down1(h0))
        h2 = max_pool_2x2(self.down2(h1))
        h = gelu(average_pool(h2, self.pool))
        h = relu(self.up_norm(self.up0(h)))
        h = self.up1(add_to_pixels(scale1[:, None, None] * h, shift1), h2)
        h = self.up2(add_to_pixels(scale2[:, None, None] * h, shift2), h1)
        h = relu(self.output_norm(self.output1(concatenate_channels(h, h0))))
        return self.output2(h).astype(result_dtype)
