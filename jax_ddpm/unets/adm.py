"""ADMUNet: the network of Nichol & Dhariwal 2021 and of Dhariwal & Nichol 2021 (ADM).

52,542,979 parameters with the default settings and three image channels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int, Real

from jax_ddpm.arrays import Array, upcast
from jax_ddpm.embeddings import concatenated_embedding, geometric_frequencies
from jax_ddpm.layers import Conv, GroupNorm, Linear, add_label, cast, identity, label_embedding, remat_block, unfilled
from jax_ddpm.ops import (
    add_bias,
    add_to_pixels,
    average_pool_2x2,
    cast_and_broadcast,
    concatenate_channels,
    einsum,
    matmul,
    repeat_2x2,
    silu,
)

GROUPS = 32


class Projection(nnx.Module):
    """y = x W + b for each pixel, a convolution of width 1 over the list of pixels; kernel (1, in, out)."""

    def __init__(self, in_features: int, out_features: int):
        self.kernel = unfilled(1, in_features, out_features)
        self.bias = unfilled(out_features)

    def __call__(self, x):
        return add_bias(matmul(x, cast(self.kernel, x.dtype)[0]), self.bias[...])


class ZeroProjection(Projection):
    """A projection whose parameters start at zero."""


class ZeroConv(Conv):
    """A convolution whose parameters start at zero."""


class TimeEmbedding(nnx.Module):
    """t -> Linear(SiLU(Linear(cosines and sines of scale * t))), (B,) to (B, time_width)."""

    def __init__(self, width: int, time_width: int, scale: float):
        self.width, self.scale = width, scale
        self.linear1 = Linear(width, time_width)
        self.linear2 = Linear(time_width, time_width)

    def __call__(self, t):
        dtype = self.linear1.kernel.dtype  # not bfloat16, which would round t = 998 to 1000
        frequencies = jnp.asarray(geometric_frequencies(self.width), dtype)
        t = t.astype(dtype) * self.scale
        return self.linear2(silu(self.linear1(concatenated_embedding(t, frequencies, flip_sin_to_cos=True))))


class ResidualBlock(nnx.Module):
    """Twice GroupNorm, SiLU and 3x3 convolution, plus x. The time comes in between.

    The time is added before the second GroupNorm. With `scale_shift` it instead scales and shifts the output of this
    GroupNorm (Dhariwal & Nichol 2021, section 3). `dropout` is applied before the second convolution. `resample`
    changes the image size: it is applied to x, and before the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int,
        scale_shift: bool,
        resample: Callable = identity,
    ):
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1 = GroupNorm(GROUPS, in_channels)
        self.conv1 = Conv(in_channels, out_channels, 3)
        self.time_linear = Linear(time_width, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = GroupNorm(GROUPS, out_channels)
        self.conv2 = ZeroConv(out_channels, out_channels, 3)
        self.shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    @remat_block
    def __call__(self, x, time, dropout):
        h = self.conv1(self.resample(silu(self.norm1(x))))
        time = self.time_linear(silu(time))
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            scale = cast_and_broadcast(1 + scale[:, None, None], h.shape, h.dtype)
            h = add_to_pixels(scale * self.norm2(h), shift)  # AdaGN, section 3
        else:
            h = self.norm2(add_to_pixels(h, time))
        h = self.conv2(dropout(silu(h)))
        x = self.resample(x)
        return h + (x if self.shortcut is None else self.shortcut(x))


def multi_head(qkv, heads: int, new_order: bool):
    """Self-attention (Vaswani et al. 2017, section 3.2) of N tokens: qkv (B, N, 3C) to (B, N, C).

    The 3C channels are, with `new_order`, all queries, all keys and all values; otherwise the queries, keys and values
    of the first head, then those of the second, and so on.
    """
    b, n, c = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    d = c // heads
    qkv = qkv.reshape(b, n, 3, heads, d) if new_order else qkv.reshape(b, n, heads, 3, d).swapaxes(2, 3)
    query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scale = d**-0.25  # on both factors: their product stays small in half precision
    weights = jax.nn.softmax(upcast(einsum("bqhd,bkhd->bhqk", query * scale, key * scale)), axis=-1)  # eq. 1
    return einsum("bhqk,bkhd->bqhd", weights.astype(qkv.dtype), value).reshape(b, n, c)


class SelfAttention(nnx.Module):
    """x + self-attention(GroupNorm(x)) over the H*W pixels, by `multi_head`."""

    def __init__(self, channels: int, heads: int, new_order: bool):
        self.heads, self.new_order = heads, new_order
        self.norm = GroupNorm(GROUPS, channels)
        self.projection = Projection(channels, 3 * channels)
        self.output = ZeroProjection(channels, channels)

    @remat_block
    def __call__(self, x, *_):
        b, height, width, c = x.shape
        qkv = self.projection(self.norm(x).reshape(b, height * width, c))
        return x + self.output(multi_head(qkv, self.heads, self.new_order)).reshape(x.shape)


class Input(Conv):
    """3x3 convolution of the image."""

    def __call__(self, x, *_):
        return super().__call__(x)


class Downsample(nnx.Module):
    """3x3 convolution with stride 2; without `by_convolution`, the mean of each 2x2 block."""

    def __init__(self, channels: int, by_convolution: bool):
        self.conv = Conv(channels, channels, 3, stride=2) if by_convolution else None

    def __call__(self, x, *_):
        return average_pool_2x2(x) if self.conv is None else self.conv(x)


class Upsample(nnx.Module):
    """Repeats every pixel in a 2x2 block, then 3x3 convolution, if `by_convolution`."""

    def __init__(self, channels: int, by_convolution: bool):
        self.conv = Conv(channels, channels, 3) if by_convolution else None

    def __call__(self, x, *_):
        x = repeat_2x2(x)
        return x if self.conv is None else self.conv(x)


def down_path(
    image_channels: int,
    widths: tuple[int, ...],
    num_res_blocks: int,
    attention: tuple[bool, ...],
    resblock_updown: bool,
    conv_resample: bool,
    block: Callable,
    attend: Callable,
) -> tuple[list, list[int], list]:
    """The way down: lists of layers, the channels after each list, and the layers of the middle.

    block: (channels, output channels) -> a ResidualBlock. attend: channels -> a SelfAttention.
    """
    width, skips, deepest = widths[0], [widths[0]], len(widths) - 1
    down = [[Input(image_channels, width, 3)]]
    for level, out in enumerate(widths):
        for _ in range(num_res_blocks):
            down.append([block(width, out)])
            if attention[level]:
                down[-1].append(attend(out))
            width = out
            skips.append(out)
        if level < deepest:
            by_block = resblock_updown
            down.append([block(out, out, resample=average_pool_2x2) if by_block else Downsample(out, conv_resample)])
            skips.append(out)
    return down, skips, [block(width, width), attend(width), block(width, width)]


class ADMUNet(nnx.Module):
    """(x, t) -> prediction of x's shape. With `learned_variance` it has twice the channels: [prediction, v].

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 2^(levels - 1). t: integers (B,) in [0, T).
    `labels`, for a network with classes: integers (B,), floats (B, K) that mix labels, or None for the null label.
    The settings are those of `ADMConfig`. `dropout`, an argument of the call, is a function h -> h for training.
    Activations have the dtype `dtype` (default: that of the parameters). The prediction has the dtype of the
    parameters.
    """

    def __init__(
        self,
        image_channels: int = 3,
        widths: tuple[int, ...] = (128, 256, 256, 256),
        model_channels: int | None = None,
        num_res_blocks: int = 3,
        attention: tuple[bool, ...] = (False, True, True, False),
        num_heads: int = 4,
        num_head_channels: int | None = None,
        num_heads_upsample: int | None = None,
        use_new_attention_order: bool = False,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        conv_resample: bool = True,
        time_scale: float = 1.0,
        dropout: float = 0.0,
        learned_variance: bool = False,
        num_classes: int = 0,
        null_label: bool = False,
        dtype=None,
    ):
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        embedding_width = model_channels or widths[0]
        time_width = 4 * embedding_width
        block = partial(ResidualBlock, time_width=time_width, scale_shift=use_scale_shift_norm)

        def attend(channels, heads):
            heads = channels // num_head_channels if num_head_channels else heads
            return SelfAttention(channels, heads, use_new_attention_order)

        self.time_embedding = TimeEmbedding(embedding_width, time_width, time_scale)
        self.class_embedding = label_embedding(num_classes, null_label, time_width)
        attend_down = partial(attend, heads=num_heads)
        down, skips, middle = down_path(
            *(image_channels, widths, num_res_blocks, attention, resblock_updown, conv_resample, block, attend_down)
        )
        up, width = [], widths[-1]
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(num_res_blocks + 1):
                up.append([block(width + skips.pop(), out)])
                if attention[level]:
                    up[-1].append(attend(out, num_heads_upsample or num_heads))
                width = out
            if level > 0:
                up[-1].append(block(out, out, resample=repeat_2x2) if resblock_updown else Upsample(out, conv_resample))
        self.down = nnx.List([nnx.List(layers) for layers in down])
        self.middle = nnx.List(middle)
        self.up = nnx.List([nnx.List(layers) for layers in up])
        self.norm = GroupNorm(GROUPS, width)
        self.output = ZeroConv(width, image_channels * (2 if learned_variance else 1), 3)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Real[Array, "b"],
        labels: Int[Array, "b"] | Float[Array, "b k"] | None = None,
        dropout: Callable = identity,
    ) -> Float[Array, "b h w e"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = add_label(self.time_embedding(t), labels, self.class_embedding, self.null_index).astype(dtype)
        h, skips = x.astype(dtype), []
        for layers in self.down:
            for layer in layers:
                h = layer(h, time, dropout)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, time, dropout)
        for layers in self.up:
            h = concatenate_channels(h, skips.pop())
            for layer in layers:
                h = layer(h, time, dropout)
        return self.output(silu(self.norm(h))).astype(result_dtype)
