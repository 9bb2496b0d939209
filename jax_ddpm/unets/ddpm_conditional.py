"""DDPMConditionalUNet: the UNet of dome272's Diffusion-Models-pytorch, with and without labels.

23,332,739 parameters with the default settings and three image channels, and 256 more for each class.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Real

from jax_ddpm.arrays import Array, upcast, upcast_dtype
from jax_ddpm.embeddings import concatenated_embedding
from jax_ddpm.layers import Conv, GroupNorm, Linear, add_label, cast, label_embedding, remat_block
from jax_ddpm.ops import add_to_pixels, concatenate_channels, convolve, gelu, layer_norm, max_pool_2x2, silu
from jax_ddpm.unets.attention import SelfAttention


def frequencies(width: int) -> np.ndarray:
    """10000^(-2i / width) for i = 0 .. width/2 - 1, float32 (width/2,). The power is rounded, then its inverse."""
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return 1 / np.power(10000.0, exponent.astype(np.float64)).astype(np.float32)


def add_class(time, labels, embedding, null_index: int | None):
    """The time vectors (B, D) plus the rows of the labels in the embedding. The null label adds nothing.

    Arguments and errors are those of `layers.add_label`.
    """
    if labels is None and null_index is not None:
        return time
    if labels is not None and embedding is not None:
        rows = embedding.embedding.shape[0]
        is_mixed = jnp.issubdtype(labels.dtype, jnp.floating)
        labels = labels[:, :rows] if is_mixed else jax.nn.one_hot(labels, rows, dtype=time.dtype)
    return add_label(time, labels, embedding, null_index)


class ConvWithoutBias(Conv):
    """3x3 convolution without bias."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3)
        self.bias = None

    def __call__(self, x):
        return convolve(x, cast(self.kernel, x.dtype), self.stride, self.padding)


class LayerNorm(GroupNorm):
    """LayerNorm (Ba et al. 2016) over the channels of each pixel. Its arrays are those of a GroupNorm."""

    def __init__(self, channels: int):
        super().__init__(1, channels)

    def __call__(self, x):
        dtype = upcast_dtype(x.dtype)
        scale, bias = self.scale[...].astype(dtype), self.bias[...].astype(dtype)
        return layer_norm(x.reshape(-1, x.shape[-1]), scale, bias, self.epsilon).reshape(x.shape)


class DoubleConv(nnx.Module):
    """Twice 3x3 convolution and GroupNorm over the whole image, GELU in between. With `residual`: GELU(x + that)."""

    def __init__(self, in_channels: int, out_channels: int, middle_channels: int | None = None, residual: bool = False):
        self.residual, middle_channels = residual, middle_channels or out_channels
        self.conv1 = ConvWithoutBias(in_channels, middle_channels)
        self.norm1 = GroupNorm(1, middle_channels)
        self.conv2 = ConvWithoutBias(middle_channels, out_channels)
        self.norm2 = GroupNorm(1, out_channels)

    @remat_block
    def __call__(self, x):
        h = self.norm2(self.conv2(gelu(self.norm1(self.conv1(x)))))
        return gelu(x + h) if self.residual else h


class AttentionBlock(nnx.Module):
    """Self-attention over the H*W pixels, then two linear layers of each pixel: both after LayerNorm, both plus x."""

    def __init__(self, channels: int, heads: int):
        self.norm1 = LayerNorm(channels)
        self.attention = SelfAttention(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.linear1 = Linear(channels, channels)
        self.linear2 = Linear(channels, channels)

    @remat_block
    def __call__(self, x):
        h = self.attention(self.norm1(x)) + x
        return self.linear2(gelu(self.linear1(self.norm2(h)))) + h


class Down(nnx.Module):
    """2x2 max pooling, two blocks, plus the time."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int):
        self.block1 = DoubleConv(in_channels, in_channels, residual=True)
        self.block2 = DoubleConv(in_channels, out_channels)
        self.time_linear = Linear(time_width, out_channels)

    def __call__(self, x, time):
        return add_to_pixels(self.block2(self.block1(max_pool_2x2(x))), self.time_linear(silu(time)))


class Up(nnx.Module):
    """Doubles the size, concatenates the skip before it, two blocks, plus the time."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int):
        self.block1 = DoubleConv(in_channels, in_channels, residual=True)
        self.block2 = DoubleConv(in_channels, out_channels, in_channels // 2)
        self.time_linear = Linear(time_width, out_channels)

    def __call__(self, x, skip, time):
        h = self.block2(self.block1(concatenate_channels(skip, bilinear_2x2(x))))
        return add_to_pixels(h, self.time_linear(silu(time)))


def bilinear_2x2(x):
    """x (B, H, W, C) interpolated to (B, 2H, 2W, C), corners on corners (align_corners). In float32 or float64."""
    h = interpolate_rows(upcast(x))
    return interpolate_rows(h.swapaxes(1, 2)).swapaxes(1, 2).astype(x.dtype)


def interpolate_rows(x):
    """x (B, H, W, C) interpolated to (B, 2H, W, C): the first and last row stay the first and last.

    Row r of the result lies at r (H - 1) / (2H - 1) in x. That is i / (2H - 1) before row i for r = 2i, and
    (H - 1 - i) / (2H - 1) after it for r = 2i + 1.
    """
    b, n, w, c = x.shape
    weight = (np.arange(n) / (2 * n - 1)).astype(x.dtype).reshape(n, 1, 1)
    before = jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
    after = jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)
    even = x + weight * (before - x)
    odd = x + weight[::-1] * (after - x)
    return jnp.stack([even, odd], axis=2).reshape(b, 2 * n, w, c)


class DDPMConditionalUNet(nnx.Module):
    """(x, t) -> prediction of x's shape.

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 8. t: integers (B,) in [0, T).
    `labels`, for a network with classes: integers (B,), floats (B, K) that mix labels, or None for the null label.
    Activations have the dtype `dtype` (default: that of the parameters). The prediction has the dtype of the
    parameters.
    """

    def __init__(
        self,
        image_channels: int = 3,
        channels: int = 64,
        time_width: int = 256,
        heads: int = 4,
        remove_deep_conv: bool = False,
        num_classes: int = 0,
        null_label: bool = True,
        dtype=None,
    ):
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_width, n = time_width, channels
        deepest = 4 * n if remove_deep_conv else 8 * n
        self.class_embedding = label_embedding(num_classes, False, time_width)
        self.input = DoubleConv(image_channels, n)
        self.down1 = Down(n, 2 * n, time_width)
        self.attention1 = AttentionBlock(2 * n, heads)
        self.down2 = Down(2 * n, 4 * n, time_width)
        self.attention2 = AttentionBlock(4 * n, heads)
        self.down3 = Down(4 * n, 4 * n, time_width)
        self.attention3 = AttentionBlock(4 * n, heads)
        self.middle1 = DoubleConv(4 * n, deepest)
        self.middle2 = None if remove_deep_conv else DoubleConv(deepest, deepest)
        self.middle3 = DoubleConv(deepest, 4 * n)
        self.up1 = Up(8 * n, 2 * n, time_width)
        self.attention4 = AttentionBlock(2 * n, heads)
        self.up2 = Up(4 * n, n, time_width)
        self.attention5 = AttentionBlock(n, heads)
        self.up3 = Up(2 * n, n, time_width)
        self.attention6 = AttentionBlock(n, heads)
        self.output = Conv(n, image_channels, 1)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Real[Array, "b"],
        labels: Int[Array, "b"] | Float[Array, "b k"] | None = None,
    ) -> Float[Array, "b h w c"]:
        result_dtype = self.output.kernel.dtype  # of the time, too: bfloat16 would round t = 998 to 1000
        dtype = self.dtype or result_dtype
        time = concatenated_embedding(t, jnp.asarray(frequencies(self.time_width), result_dtype), flip_sin_to_cos=False)
        time = add_class(time, labels, self.class_embedding, self.null_index).astype(dtype)
        h1 = self.input(x.astype(dtype))
        h2 = self.attention1(self.down1(h1, time))
        h3 = self.attention2(self.down2(h2, time))
        h = self.middle1(self.attention3(self.down3(h3, time)))
        h = self.middle3(h if self.middle2 is None else self.middle2(h))
        h = self.attention4(self.up1(h, h3, time))
        h = self.attention5(self.up2(h, h2, time))
        h = self.attention6(self.up3(h, h1, time))
        return self.output(h).astype(result_dtype)
