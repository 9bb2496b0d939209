"""DDPMUNet: the network of Ho et al. 2020, appendix B.

35,746,307 parameters with the default settings and three image channels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Real

from jax_ddpm.arrays import Array, upcast
from jax_ddpm.embeddings import concatenated_embedding, geometric_frequencies
from jax_ddpm.layers import Conv, Embedding, GroupNorm, Linear, add_label, identity, remat_block
from jax_ddpm.ops import (
    add_to_pixels,
    average_pool_2x2,
    cast_and_broadcast,
    concatenate_channels,
    einsum,
    gelu,
    mish,
    relu,
    repeat_2x2,
    silu,
)

ACTIVATIONS = {"silu": silu, "gelu": gelu, "mish": mish, "relu": relu}


class TimeEmbedding(nnx.Module):
    """t -> Linear(SiLU(Linear(sines and cosines of t))), (B,) to (B, time_width)."""

    def __init__(self, width: int, time_width: int, flip_sin_to_cos: bool, freq_shift: int):
        self.width, self.flip_sin_to_cos, self.freq_shift = width, flip_sin_to_cos, freq_shift
        self.linear1 = Linear(width, time_width)
        self.linear2 = Linear(time_width, time_width)

    def __call__(self, t):
        dtype = self.linear1.kernel.dtype  # not bfloat16, which would round t = 998 to 1000
        frequencies = jnp.asarray(geometric_frequencies(self.width, self.freq_shift), dtype)
        return self.linear2(silu(self.linear1(concatenated_embedding(t, frequencies, self.flip_sin_to_cos))))


class ResidualBlock(nnx.Module):
    """Twice GroupNorm, activation and 3x3 convolution, plus x. The time comes in between.

    The time is added before the second GroupNorm. With `scale_shift` it instead scales and shifts the output of this
    GroupNorm (Dhariwal & Nichol 2021, section 3). `dropout` is applied before the second convolution. `resample`
    changes the image size: it is applied to x, and before the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int,
        groups: int,
        epsilon: float,
        activation: Callable = silu,
        scale_shift: bool = False,
        resample: Callable = identity,
    ):
        self.activation, self.scale_shift, self.resample = activation, scale_shift, resample
        self.norm1 = GroupNorm(groups, in_channels, epsilon)
        self.conv1 = Conv(in_channels, out_channels, 3)
        self.time_linear = Linear(time_width, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = GroupNorm(groups, out_channels, epsilon)
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    @remat_block
    def __call__(self, x, time, dropout):
        h = self.conv1(self.resample(self.activation(self.norm1(x))))
        time = self.time_linear(self.activation(time))
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            scale = cast_and_broadcast(1 + scale[:, None, None], h.shape, h.dtype)
            h = add_to_pixels(scale * self.norm2(h), shift)
        else:
            h = self.norm2(add_to_pixels(h, time))
        h = self.conv2(dropout(self.activation(h)))
        x = self.resample(x)
        return h + (x if self.shortcut is None else self.shortcut(x))


class SelfAttention(nnx.Module):
    """x + self-attention(GroupNorm(x)) over the H*W pixels (Vaswani et al. 2017, section 3.2).

    head_dim: channels per head. None: a single head. groups: None leaves GroupNorm out.
    """

    def __init__(self, channels: int, head_dim: int | None, groups: int | None, epsilon: float):
        self.heads = channels // (head_dim or channels)
        self.norm = None if groups is None else GroupNorm(groups, channels, epsilon)
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.output = Linear(channels, channels)

    @remat_block
    def __call__(self, x):
        b, height, width, c = x.shape
        h = x if self.norm is None else self.norm(x)
        query, key, value = (
            layer(h).reshape(b, height * width, self.heads, c // self.heads)
            for layer in (self.query, self.key, self.value)
        )
        scores = einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(c // self.heads).astype(x.dtype)
        weights = jax.nn.softmax(upcast(scores), axis=-1).astype(x.dtype)  # eq. 1
        h = einsum("bhqk,bkhd->bqhd", weights, value)
        return x + self.output(h.reshape(x.shape))


class Downsample(nnx.Module):
    """3x3 convolution with stride 2. padding 1 pads all four sides, padding 0 only the right and the bottom."""

    def __init__(self, channels: int, padding: int):
        self.padding = padding
        self.conv = Conv(channels, channels, 3, stride=2, padding=padding)

    def __call__(self, x, *_):
        return self.conv(x if self.padding else jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))


class Upsample(nnx.Module):
    """Repeats every pixel in a 2x2 block, then 3x3 convolution."""

    def __init__(self, channels: int):
        self.conv = Conv(channels, channels, 3)

    def __call__(self, x, *_):
        return self.conv(repeat_2x2(x))


class Down(nnx.Module):
    """A level on the way down: residual blocks, each followed by attention if it is given, then downsampling.

    in_channels: input channels of each block. block(in, out) and attention(channels) make layers. downsample: a
    `Downsample`, a `ResidualBlock` that halves the size, or None.
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, block: Callable, attention: Callable | None, downsample
    ):
        self.residuals = nnx.List([block(i, out_channels) for i in in_channels])
        self.attentions = nnx.List([attention(out_channels) for _ in in_channels] if attention else [])
        self.downsample = downsample

    def __call__(self, x, time, dropout):
        """The outputs of all blocks and of the downsampling: these are the skips."""
        outputs = []
        for number, residual in enumerate(self.residuals):
            x = residual(x, time, dropout)
            x = self.attentions[number](x) if self.attentions else x
            outputs.append(x)
        return outputs if self.downsample is None else [*outputs, self.downsample(x, time, dropout)]


class Middle(nnx.Module):
    """Two residual blocks, with attention between them if it is given."""

    def __init__(self, channels: int, block: Callable, attention: Callable | None):
        self.residuals = nnx.List([block(channels, channels), block(channels, channels)])
        self.attentions = nnx.List([attention(channels)] if attention else [])

    def __call__(self, x, time, dropout):
        x = self.residuals[0](x, time, dropout)
        x = self.attentions[0](x) if self.attentions else x
        return self.residuals[1](x, time, dropout)


class Up(nnx.Module):
    """A level on the way up: like `Down`, but each block takes [x, the last skip]. Then upsampling."""

    def __init__(
        self, in_channels: list[int], out_channels: int, block: Callable, attention: Callable | None, upsample
    ):
        self.residuals = nnx.List([block(i, out_channels) for i in in_channels])
        self.attentions = nnx.List([attention(out_channels) for _ in in_channels] if attention else [])
        self.upsample = upsample

    def __call__(self, x, skips, time, dropout):
        for number, residual in enumerate(self.residuals):
            x = residual(concatenate_channels(x, skips.pop()), time, dropout)
            x = self.attentions[number](x) if self.attentions else x
        return x if self.upsample is None else self.upsample(x, time, dropout)


class DDPMUNet(nnx.Module):
    """(x, t) -> prediction of x's shape. With `learned_variance` it has twice the channels: [prediction, v].

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 2^(levels - 1). t: integers (B,) in [0, T).
    `labels`, for a network with classes: integers (B,), or None for the null label; vectors (B, time width) with
    class_embed_type "identity".
    The settings are those of `DDPMConfig`. `dropout`, an argument of the call, is a function h -> h for training.
    Activations have the dtype `dtype` (default: that of the parameters). The prediction has the dtype of the
    parameters.
    """

    def __init__(
        self,
        image_channels: int = 3,
        widths: tuple[int, ...] = (128, 256, 256, 256),
        layers_per_block: int = 2,
        down_attention: tuple[bool, ...] = (False, True, False, False),
        up_attention: tuple[bool, ...] = (False, False, True, False),
        attention_head_dim: int | None = None,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        downsample_padding: int = 0,
        flip_sin_to_cos: bool = False,
        freq_shift: int = 1,
        center_input_sample: bool = False,
        dropout: float = 0.1,
        learned_variance: bool = False,
        resnet_time_scale_shift: str = "default",
        act_fn: str = "silu",
        time_embedding_dim: int | None = None,
        mid_block: bool = True,
        add_attention: bool = True,
        attn_norm_num_groups: int | None = None,
        resnet_downsample: tuple[bool, ...] = (),
        resnet_upsample: tuple[bool, ...] = (),
        num_class_embeds: int | None = None,
        class_embed_type: str | None = None,
        null_label: bool = False,
        dtype=None,
    ):
        self.dtype, self.center_input_sample = dtype, center_input_sample
        self.null_index = num_class_embeds - 1 if null_label else None
        scale_shift, time_width = resnet_time_scale_shift == "scale_shift", time_embedding_dim or 4 * widths[0]
        block = partial(
            ResidualBlock,
            time_width=time_width,
            groups=norm_num_groups,
            epsilon=norm_eps,
            activation=ACTIVATIONS[act_fn],
            scale_shift=scale_shift,
        )
        attention = partial(SelfAttention, head_dim=attention_head_dim, groups=norm_num_groups, epsilon=norm_eps)
        self.input = Conv(image_channels, widths[0], 3)
        embed_time = partial(TimeEmbedding, widths[0], time_width, flip_sin_to_cos, freq_shift)
        self.time_embedding = embed_time()
        if class_embed_type == "timestep":
            self.class_embedding = embed_time()
        elif class_embed_type == "identity":
            self.class_embedding = identity
        elif num_class_embeds is not None:
            self.class_embedding = Embedding(num_class_embeds, time_width)
        else:
            self.class_embedding = None
        width, skips, deepest = widths[0], [widths[0]], len(widths) - 1
        by_convolution = (False,) * len(widths)
        down, up = [], []
        levels = zip(widths, down_attention, resnet_downsample or by_convolution, strict=True)
        for level, (out, has_attention, by_block) in enumerate(levels):
            in_channels = [width] + [out] * (layers_per_block - 1)
            downsample = None
            if level < deepest:
                downsample = (
                    block(out, out, resample=average_pool_2x2) if by_block else Downsample(out, downsample_padding)
                )
            down.append(Down(in_channels, out, block, attention if has_attention else None, downsample))
            width = out
            skips += [out] * (layers_per_block + (level < deepest))
        groups = attn_norm_num_groups or (None if scale_shift else norm_num_groups)
        middle_attention = partial(attention, groups=groups) if add_attention else None
        self.middle = Middle(width, block, middle_attention) if mid_block else None
        levels = zip(widths[::-1], up_attention, resnet_upsample or by_convolution, strict=True)
        for level, (out, has_attention, by_block) in enumerate(levels):
            in_channels = [i + skips.pop() for i in [width] + [out] * layers_per_block]
            upsample = None
            if level < deepest:
                upsample = block(out, out, resample=repeat_2x2) if by_block else Upsample(out)
            up.append(Up(in_channels, out, block, attention if has_attention else None, upsample))
            width = out
        self.down, self.up = nnx.List(down), nnx.List(up)
        self.norm = GroupNorm(norm_num_groups, width, norm_eps)
        self.output = Conv(width, image_channels * (2 if learned_variance else 1), 3)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Real[Array, "b"],
        labels: Int[Array, "b"] | Float[Array, "b d"] | None = None,
        dropout: Callable = identity,
    ) -> Float[Array, "b h w e"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = add_label(self.time_embedding(t), labels, self.class_embedding, self.null_index).astype(dtype)
        h = self.input((2 * x - 1 if self.center_input_sample else x).astype(dtype))
        skips = [h]
        for level in self.down:
            skips += level(skips[-1], time, dropout)
        h = skips[-1] if self.middle is None else self.middle(skips[-1], time, dropout)
        for level in self.up:
            h = level(h, skips, time, dropout)
        return self.output(silu(self.norm(h))).astype(result_dtype)
