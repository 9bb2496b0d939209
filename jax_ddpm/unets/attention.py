"""AttentionUNet: residual blocks, and self-attention at the deep levels.

173,082,049 parameters with the default settings and one image channel.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Real

from jax_ddpm.arrays import Array, upcast
from jax_ddpm.layers import (
    Buffer,
    Conv,
    ConvTranspose,
    GroupNorm,
    Linear,
    add_label,
    identity,
    label_embedding,
    remat_block,
)
from jax_ddpm.ops import add_to_pixels, concatenate_channels, einsum, silu


class Frequencies(Buffer):
    """Fixed random frequencies, N(0, 1) * pi, drawn by `weights.initialise`."""


class TimeEmbedding(nnx.Module):
    """t -> Linear(SiLU(Linear([sin t f, cos t f]))), (B,) to (B, 4 channels)."""

    def __init__(self, channels: int):
        self.frequencies = Frequencies(np.full(channels // 2, np.nan, np.float32))
        self.linear1 = Linear(channels, 4 * channels)
        self.linear2 = Linear(4 * channels, 4 * channels)

    def __call__(self, t):
        dtype = self.linear1.kernel.dtype  # not bfloat16, which would round t = 998 to 1000
        phase = t.astype(dtype)[:, None] * self.frequencies[...].astype(dtype)
        time = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
        return self.linear2(silu(self.linear1(time)))


class ResidualBlock(nnx.Module):
    """Twice GroupNorm, SiLU and 3x3 convolution, plus x. The time is added in between.

    `dropout` is applied before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, time_width: int):
        self.norm1 = GroupNorm(32, in_channels)
        self.conv1 = Conv(in_channels, out_channels, 3)
        self.time_linear = Linear(time_width, out_channels)
        self.norm2 = GroupNorm(32, out_channels)
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def __call__(self, x, time, dropout):
        h = self.conv1(silu(self.norm1(x)))
        h = add_to_pixels(h, self.time_linear(silu(time)))
        h = self.conv2(dropout(silu(self.norm2(h))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class QueryKeyValue(Linear):
    """The projections to query, key and value, packed in one matrix."""


class AttentionOutput(Linear):
    """The output projection of self-attention."""


class SelfAttention(nnx.Module):
    """Self-attention over the H*W pixels (Vaswani et al. 2017, section 3.2), without a residual connection."""

    def __init__(self, channels: int, heads: int):
        self.heads = heads
        self.projection = QueryKeyValue(channels, 3 * channels)
        self.output = AttentionOutput(channels, channels)

    def __call__(self, x):
        b, h, w, c = x.shape
        qkv = self.projection(x).reshape(b, h * w, 3, self.heads, c // self.heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(c // self.heads).astype(x.dtype)
        weights = jax.nn.softmax(upcast(scores), axis=-1).astype(x.dtype)  # eq. 1
        heads = einsum("bhqk,bkhd->bqhd", weights, value)
        return self.output(heads.reshape(b, h, w, c))


class Block(nnx.Module):
    """A residual block, followed by self-attention if `heads` is given."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, heads: int | None):
        self.residual = ResidualBlock(in_channels, out_channels, time_width)
        self.attention = SelfAttention(out_channels, heads) if heads else None

    @remat_block
    def __call__(self, x, time, dropout):
        h = self.residual(x, time, dropout)
        return h if self.attention is None else self.attention(h)


class Downsample(nnx.Module):
    """3x3 convolution with stride 2."""

    def __init__(self, channels: int):
        self.conv = Conv(channels, channels, 3, stride=2)

    def __call__(self, x, time, dropout):
        return self.conv(x)


class Upsample(nnx.Module):
    """4x4 transposed convolution with stride 2."""

    def __init__(self, channels: int):
        self.conv = ConvTranspose(channels, channels, 4, stride=2, padding=1)

    def __call__(self, x):
        return self.conv(x)


class Middle(nnx.Module):
    """Two blocks with self-attention."""

    def __init__(self, channels: int, time_width: int, heads: int):
        self.block1 = Block(channels, channels, time_width, heads)
        self.block2 = Block(channels, channels, time_width, heads)

    def __call__(self, x, time, dropout):
        return self.block2(self.block1(x, time, dropout), time, dropout)


class AttentionUNet(nnx.Module):
    """(x, t) -> prediction of x's shape.

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 2^(levels - 1). t: integers (B,) in [0, T).
    `labels`, for a network with classes: integers (B,), floats (B, K) that mix labels, or None for the null label.
    Level l has channels * multipliers[0] * ... * multipliers[l] channels. `dropout`, an argument of the call, is a
    function h -> h for training. Activations have the dtype `dtype` (default: that of the parameters). The prediction
    has the dtype of the parameters.
    """

    def __init__(
        self,
        image_channels: int = 1,
        channels: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2, 4),
        attention: tuple[bool, ...] = (False, False, True, True),
        blocks: int = 2,
        heads: int = 8,
        dropout: float = 0.1,
        num_classes: int = 0,
        null_label: bool = True,
        dtype=None,
    ):
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        width, time_width = channels, 4 * channels
        self.image_projection = Conv(image_channels, channels, 3)
        self.time_embedding = TimeEmbedding(channels)
        self.class_embedding = label_embedding(num_classes, null_label, time_width)
        levels = list(zip(multipliers, (heads if on else None for on in attention), strict=True))
        down, up, skips = [], [], [channels]
        for level, (multiplier, level_heads) in enumerate(levels):
            for number in range(blocks):
                out = width * multiplier if number == 0 else width
                down.append(Block(width, out, time_width, level_heads))
                width = out
                skips.append(width)
            if level < len(levels) - 1:
                down.append(Downsample(width))
                skips.append(width)
        self.middle = Middle(width, time_width, heads)
        for level, (multiplier, level_heads) in reversed(list(enumerate(levels))):
            for number in range(blocks + 1):
                out = width // multiplier if number == blocks else width
                up.append(Block(width + skips.pop(), out, time_width, level_heads))
                width = out
            if level > 0:
                up.append(Upsample(width))
        self.down, self.up = nnx.List(down), nnx.List(up)
        self.norm = GroupNorm(8, width)
        self.output = Conv(width, image_channels, 3)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Real[Array, "b"],
        labels: Int[Array, "b"] | Float[Array, "b k"] | None = None,
        dropout: Callable = identity,
    ) -> Float[Array, "b h w c"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = add_label(self.time_embedding(t), labels, self.class_embedding, self.null_index).astype(dtype)
        h = self.image_projection(x.astype(dtype))
        skips = [h]
        for layer in self.down:
            h = layer(h, time, dropout)
            skips.append(h)
        h = self.middle(h, time, dropout)
        for layer in self.up:
            h = layer(h) if isinstance(layer, Upsample) else layer(concatenate_channels(h, skips.pop()), time, dropout)
        return self.output(silu(self.norm(h))).astype(result_dtype)
