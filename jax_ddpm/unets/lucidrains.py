"""LucidrainsUNet: the UNet of the package denoising_diffusion_pytorch, from its version 0.27.12.

35,711,491 parameters with the default settings and three image channels.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Float, Real

from jax_ddpm.arrays import Array, upcast
from jax_ddpm.layers import Buffer, Conv, GroupNorm, Linear, cast, identity, remat_block, unfilled
from jax_ddpm.ops import (
    add_to_pixels,
    cast_and_broadcast,
    concatenate_channels,
    convolve,
    einsum,
    gelu,
    repeat_2x2,
    silu,
)
from jax_ddpm.spec.lucidrains_config import TRAITS, Traits


class Normal(nnx.Param):
    """Parameters that `weights.initialise` draws from N(0, 1)."""


class RandomFrequencies(Buffer):
    """Fixed frequencies that `weights.initialise` draws from N(0, 1)."""


class ConvWithoutBias(nnx.Module):
    """1x1 convolution without bias. Kernel HWIO, x NHWC."""

    def __init__(self, in_channels: int, out_channels: int):
        self.kernel = unfilled(1, 1, in_channels, out_channels)

    def __call__(self, x):
        return convolve(x, cast(self.kernel, x.dtype), 1, 0)


def frequencies(width: int, theta: int) -> np.ndarray:
    """theta^(-i / (d/2 - 1)) for i = 0 .. d/2 - 1: float32 (d/2,), of exponents rounded to float32."""
    exponent = np.arange(width // 2, dtype=np.float32) * np.float32(-math.log(theta) / (width // 2 - 1))
    return np.exp(exponent.astype(np.float64)).astype(np.float32)


class Sinusoids(nnx.Module):
    """t -> [sin t f, cos t f] with fixed frequencies f; with learned or random ones w: [t, sin 2 pi t w, cos 2 pi t w].

    waves: 0 for fixed frequencies, else how many sines and cosines there are.
    """

    def __init__(self, width: int, theta: int, waves: int, is_random: bool):
        kind = RandomFrequencies if is_random else Normal
        self.width, self.theta = width, theta
        self.weights = kind(np.full(waves // 2, np.nan, np.float32)) if waves else None

    def __call__(self, t):
        t = t[:, None]
        if self.weights is None:
            phase = t * frequencies(self.width, self.theta).astype(t.dtype)
            return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
        phase = t * self.weights[...].astype(t.dtype) * 2 * math.pi
        return jnp.concatenate([t, jnp.sin(phase), jnp.cos(phase)], axis=-1)


class TimeEmbedding(nnx.Module):
    """t -> Linear(GELU(Linear(sines and cosines of t))), (B,) to (B, 4 width)."""

    def __init__(self, width: int, theta: int, waves: int, is_random: bool):
        self.sinusoids = Sinusoids(width, theta, waves, is_random)
        self.linear1 = Linear(waves + 1 if waves else width, 4 * width)
        self.linear2 = Linear(4 * width, 4 * width)

    def __call__(self, t):
        t = t.astype(self.linear1.kernel.dtype)  # not bfloat16, which would round t = 998 to 1000
        return self.linear2(gelu(self.linear1(self.sinusoids(t))))


class StandardizedConv(Conv):
    """A convolution whose kernel has mean 0 and variance 1 for each output channel (Qiao et al. 2019, eq. 5)."""

    def __call__(self, x):
        kernel = self.kernel[...]
        centred = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(0, 1, 2), keepdims=True)
        kernel = centred * lax.rsqrt(variance + 1e-5)
        return convolve(x, kernel.astype(x.dtype), self.stride, self.padding, self.bias[...])


class ChannelNorm(nnx.Module):
    """Each pixel's channels, scaled: RMSNorm (Zhang & Sennrich 2019, eq. 4), or LayerNorm if `centred`. No bias.

    Computed in float32 or float64. LayerNorm has an epsilon of 1e-5; RMSNorm limits the length |x| to at least 1e-12.
    """

    def __init__(self, channels: int, centred: bool):
        self.centred = centred
        self.scale = unfilled(1, 1, 1, channels)

    def __call__(self, x):
        h = upcast(x)
        if self.centred:
            h = h - jnp.mean(h, axis=-1, keepdims=True)
            h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-5)
        else:
            h = unit_length(h, -1) * np.sqrt(x.shape[-1]).astype(h.dtype)
        return (h * self.scale[...].astype(h.dtype)).astype(x.dtype)


def unit_length(x, axis: int):
    """x / max(|x|, 1e-12) over an axis."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-24))  # the maximum before the root: its gradient is finite at 0


class Block(nnx.Module):
    """3x3 convolution, norm, scale and shift if they are given, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, traits: Traits, groups: int):
        self.conv = (StandardizedConv if traits.standardized else Conv)(in_channels, out_channels, 3)
        self.norm = GroupNorm(groups, out_channels) if traits.group_norm else ChannelNorm(out_channels, centred=False)

    def __call__(self, x, scale_shift=None):
        h = self.norm(self.conv(x))
        if scale_shift is not None:
            scale, shift = jnp.split(scale_shift, 2, axis=-1)
            scale = cast_and_broadcast(1 + scale[:, None, None], h.shape, h.dtype)
            h = add_to_pixels(scale * h, shift)
        return silu(h)


class ResidualBlock(nnx.Module):
    """Two blocks, plus x. The time scales and shifts in the first. `dropout` is applied between them."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, traits: Traits, groups: int):
        self.time_linear = Linear(time_width, 2 * out_channels)
        self.block1 = Block(in_channels, out_channels, traits, groups)
        self.block2 = Block(out_channels, out_channels, traits, groups)
        self.shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    @remat_block
    def __call__(self, x, time, dropout):
        h = dropout(self.block1(x, self.time_linear(silu(time))))
        return self.block2(h) + (x if self.shortcut is None else self.shortcut(x))


class AttentionOutput(nnx.Module):
    """1x1 convolution and norm, after linear attention."""

    def __init__(self, in_channels: int, out_channels: int, centred: bool):
        self.conv = Conv(in_channels, out_channels, 1)
        self.norm = ChannelNorm(out_channels, centred)

    def __call__(self, x):
        return self.norm(self.conv(x))


class LinearAttention(nnx.Module):
    """Attention over the H*W pixels in linear time (Shen et al. 2018, eq. 5) and `memory` trained keys and values.

    Softmax is taken of the queries over their channels, and of the keys over the pixels.
    """

    def __init__(self, channels: int, heads: int, head_width: int, memory: int, traits: Traits):
        self.heads, self.divided_values = heads, traits.divided_values
        self.norm = None if traits.wrapped else ChannelNorm(channels, traits.centred_norm)
        self.memory = Normal(np.full((2, heads, head_width, memory), np.nan, np.float32)) if memory else None
        self.qkv = ConvWithoutBias(channels, 3 * heads * head_width)
        self.output = AttentionOutput(heads * head_width, channels, traits.centred_norm)

    @remat_block
    def __call__(self, x):
        query, key, value = heads_of_pixels(self.qkv(x if self.norm is None else self.norm(x)), self.heads)
        value = value / (x.shape[1] * x.shape[2]) if self.divided_values else value
        if self.memory is not None:
            key, value = with_memory(self.memory[...].transpose(0, 3, 1, 2), key, value)
        query = jax.nn.softmax(upcast(query), axis=-1).astype(x.dtype) / np.sqrt(query.shape[-1]).astype(x.dtype)
        key = jax.nn.softmax(upcast(key), axis=1).astype(x.dtype)
        context = einsum("bnhd,bnhe->bhde", key, value)
        h = einsum("bhde,bnhd->bnhe", context, query)
        return self.output(h.reshape(*x.shape[:3], -1))


class Attention(nnx.Module):
    """Attention over the H*W pixels (Vaswani et al. 2017, section 3.2), and over `memory` trained keys and values."""

    def __init__(self, channels: int, heads: int, head_width: int, memory: int, traits: Traits):
        self.heads, self.scaled_channels = heads, traits.scaled_channels
        self.norm = None if traits.wrapped else ChannelNorm(channels, traits.centred_norm)
        self.memory = Normal(np.full((2, heads, memory, head_width), np.nan, np.float32)) if memory else None
        self.qkv = ConvWithoutBias(channels, 3 * heads * head_width)
        self.output = Conv(heads * head_width, channels, 1)

    @remat_block
    def __call__(self, x):
        query, key, value = heads_of_pixels(self.qkv(x if self.norm is None else self.norm(x)), self.heads)
        if self.memory is not None:
            key, value = with_memory(self.memory[...].transpose(0, 2, 1, 3), key, value)
        if self.scaled_channels:
            query, key = (unit_length(upcast(each), 1).astype(x.dtype) for each in (query, key))
        scale = 10.0 if self.scaled_channels else 1 / math.sqrt(query.shape[-1])
        scores = einsum("bqhd,bkhd->bhqk", query, key) * np.asarray(scale, x.dtype)
        weights = jax.nn.softmax(upcast(scores), axis=-1).astype(x.dtype)  # eq. 1
        h = einsum("bhqk,bkhd->bqhd", weights, value)
        return self.output(h.reshape(*x.shape[:3], -1))


def heads_of_pixels(qkv, heads: int):
    """Query, key and value (B, H*W, heads, channels per head), which lie side by side in qkv (B, H, W, C)."""
    b, height, width, c = qkv.shape
    parts = qkv.reshape(b, height * width, 3, heads, c // (3 * heads))
    return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]


def with_memory(memory, key, value):
    """Keys and values (B, N, heads, D) after the ones in memory (2, M, heads, D), which are the same for all images."""
    shape = (key.shape[0], *memory.shape[1:])
    keys, values = (cast_and_broadcast(each[None], shape, key.dtype) for each in memory)
    return jnp.concatenate([keys, key], axis=1), jnp.concatenate([values, value], axis=1)


class PreNorm(nnx.Module):
    """Norm, then attention, as two modules with the names of versions before 1.8."""

    def __init__(self, channels: int, attention: nnx.Module, traits: Traits):
        self.pre_norm = ChannelNorm(channels, traits.centred_norm)
        self.attention = attention

    def __call__(self, x):
        return self.attention(self.pre_norm(x))


class Downsample(nnx.Module):
    """The four pixels of each 2x2 block side by side as channels, then 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        self.conv = Conv(4 * in_channels, out_channels, 1)

    def __call__(self, x):
        b, h, w, c = x.shape
        blocks = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)  # channels, then rows, then columns
        return self.conv(blocks.reshape(b, h // 2, w // 2, 4 * c))


class Upsample(nnx.Module):
    """Repeats every pixel in a 2x2 block, then 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        self.conv = Conv(in_channels, out_channels, 3)

    def __call__(self, x):
        return self.conv(repeat_2x2(x))


class Down(nnx.Module):
    """A level on the way down: two residual blocks, attention, and what gives the next level's size and channels."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module, downsample: nnx.Module):
        self.block1, self.block2, self.attention, self.downsample = block1, block2, attention, downsample

    def __call__(self, x, skips, time, dropout):
        """Appends the outputs of the first block and of attention to `skips`."""
        x = self.block1(x, time, dropout)
        skips.append(x)
        x = self.block2(x, time, dropout)
        x = self.attention(x) + x
        skips.append(x)
        return self.downsample(x)


class Up(nnx.Module):
    """A level on the way up: like `Down`, but each block takes [x, the last skip]."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module, upsample: nnx.Module):
        self.block1, self.block2, self.attention, self.upsample = block1, block2, attention, upsample

    def __call__(self, x, skips, time, dropout):
        x = self.block1(concatenate_channels(x, skips.pop()), time, dropout)
        x = self.block2(concatenate_channels(x, skips.pop()), time, dropout)
        x = self.attention(x) + x
        return self.upsample(x)


class LucidrainsUNet(nnx.Module):
    """(x, t) -> prediction of x's shape. With `learned_variance` it has twice the channels: [prediction, v].

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 2^(levels - 1). t: integers (B,) in [0, T).
    The settings are those of `LucidrainsConfig`. `dropout`, an argument of the call, is a function h -> h for training.
    With `self_condition`, x_self_cond is the x_0 that was predicted before, of x's shape (Chen et al. 2023). None means
    zeros, as in the first step of a sampler. Activations have the dtype `dtype` (default: that of the parameters). The
    prediction has the dtype of the parameters.
    """

    def __init__(
        self,
        image_channels: int = 3,
        package_version: str = "2.0",
        dim: int = 64,
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),
        init_dim: int | None = None,
        learned_variance: bool = False,
        self_condition: bool = False,
        learned_sinusoidal_cond: bool = False,
        random_fourier_features: bool = False,
        learned_sinusoidal_dim: int = 16,
        sinusoidal_pos_emb_theta: int = 10000,
        dropout: float = 0.0,
        attn_dim_head: tuple[int, ...] = (32,),
        attn_heads: tuple[int, ...] = (4,),
        full_attn: tuple[bool, ...] = (),
        num_mem_kv: int = 4,
        resnet_block_groups: int = 8,
        dtype=None,
    ):
        self.dtype, self.self_condition = dtype, self_condition
        traits, levels = TRAITS[package_version], len(dim_mults)
        widths = [init_dim or dim, *(dim * factor for factor in dim_mults)]
        block = partial(ResidualBlock, time_width=4 * dim, traits=traits, groups=resnet_block_groups)
        full_attn = full_attn or (False,) * (levels - 1) + (not traits.wrapped,)
        heads = attn_heads if len(attn_heads) == levels else attn_heads * levels
        head_widths = attn_dim_head if len(attn_dim_head) == levels else attn_dim_head * levels

        def attention(level: int, channels: int, is_full: bool):
            kind = Attention if is_full else LinearAttention
            layer = kind(channels, heads[level], head_widths[level], num_mem_kv, traits)
            return PreNorm(channels, layer, traits) if traits.wrapped else layer

        waves = learned_sinusoidal_dim if learned_sinusoidal_cond or random_fourier_features else 0
        self.input = Conv(image_channels * (2 if self_condition else 1), widths[0], 7)
        self.time_embedding = TimeEmbedding(dim, sinusoidal_pos_emb_theta, waves, random_fourier_features)
        down, up = [], []
        for level, (width, next_width) in enumerate(pairwise(widths)):
            if level == levels - 1:
                downsample = Conv(width, next_width, 3)
            elif traits.strided:
                downsample = Conv(width, next_width, 4, stride=2, padding=1)
            else:
                downsample = Downsample(width, next_width)
            layer = attention(level, width, full_attn[level])
            down.append(Down(block(width, width), block(width, width), layer, downsample))
        self.middle1 = block(widths[-1], widths[-1])
        self.middle_attention = attention(levels - 1, widths[-1], True)
        self.middle2 = block(widths[-1], widths[-1])
        for level in reversed(range(levels)):
            width, next_width = widths[level + 1], widths[level]
            upsample = Upsample(width, next_width) if level else Conv(width, next_width, 3)
            blocks = [block(width + next_width, width) for _ in range(2)]
            up.append(Up(*blocks, attention(level, width, full_attn[level]), upsample))
        self.down, self.up = nnx.List(down), nnx.List(up)
        self.last = block(2 * widths[0], widths[0])
        self.output = Conv(widths[0], image_channels * (2 if learned_variance else 1), 1)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Real[Array, "b"],
        dropout: Callable = identity,
        x_self_cond: Float[Array, "b h w c"] | None = None,
    ) -> Float[Array, "b h w e"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = self.time_embedding(t).astype(dtype)
        x = x.astype(dtype)
        if self.self_condition:
            x_0 = jnp.zeros_like(x) if x_self_cond is None else x_self_cond.astype(dtype)
            x = concatenate_channels(x_0, x)
        first = h = self.input(x)
        skips: list = []
        for level in self.down:
            h = level(h, skips, time, dropout)
        h = self.middle1(h, time, dropout)
        h = self.middle_attention(h) + h
        h = self.middle2(h, time, dropout)
        for level in self.up:
            h = level(h, skips, time, dropout)
        h = self.last(concatenate_channels(h, first), time, dropout)
        return self.output(h).astype(result_dtype)
