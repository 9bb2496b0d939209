"""AnnotatedUNet: the UNet of Hugging Face's post "The Annotated Diffusion Model", in its version with ResNet blocks.

2,020,257 parameters with the default settings and one image channel. It resembles `lucidrains` before version 1.8, from
which the post took it. Its attention has GroupNorm with one group where that has LayerNorm or RMSNorm.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Float, Real

from jax_ddpm.arrays import Array, upcast
from jax_ddpm.layers import Conv, GroupNorm, Linear, remat_block
from jax_ddpm.ops import add_to_pixels, cast_and_broadcast, concatenate_channels, convolve, einsum, silu
from jax_ddpm.spec.annotated_config import KernelScale
from jax_ddpm.unets.lucidrains import ConvWithoutBias, Downsample, TimeEmbedding, Upsample, heads_of_pixels


class ScaledConv(Conv):
    """A convolution whose kernel is scaled for each output channel, after its mean is subtracted.

    multiplied: by its standard deviation, as the post's code does. divided: by it (Qiao et al. 2019, eq. 5).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, kernel_scale: KernelScale):
        super().__init__(in_channels, out_channels, kernel_size)
        self.kernel_scale = kernel_scale

    def __call__(self, x):
        kernel = self.kernel[...]
        centred = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(0, 1, 2), keepdims=True)
        scale = {"multiplied": jnp.sqrt, "divided": lax.rsqrt}[self.kernel_scale]
        kernel = centred * scale(variance + 1e-5)
        return convolve(x, kernel.astype(x.dtype), self.stride, self.padding, self.bias[...])


class Block(nnx.Module):
    """3x3 convolution, GroupNorm, scale and shift if they are given, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, kernel_scale: KernelScale):
        self.conv = ScaledConv(in_channels, out_channels, 3, kernel_scale)
        self.norm = GroupNorm(groups, out_channels)

    def __call__(self, x, scale_shift=None):
        h = self.norm(self.conv(x))
        if scale_shift is not None:
            scale, shift = jnp.split(scale_shift, 2, axis=-1)
            scale = cast_and_broadcast(1 + scale[:, None, None], h.shape, h.dtype)
            h = add_to_pixels(scale * h, shift)
        return silu(h)


class ResidualBlock(nnx.Module):
    """Two blocks, plus x. The time scales and shifts in the first."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, groups: int, kernel_scale: KernelScale):
        self.time_linear = Linear(time_width, 2 * out_channels)
        self.block1 = Block(in_channels, out_channels, groups, kernel_scale)
        self.block2 = Block(out_channels, out_channels, groups, kernel_scale)
        self.shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    @remat_block
    def __call__(self, x, time):
        h = self.block2(self.block1(x, self.time_linear(silu(time))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class AttentionOutput(nnx.Module):
    """1x1 convolution, and GroupNorm over all channels, after linear attention."""

    def __init__(self, in_channels: int, out_channels: int):
        self.conv = Conv(in_channels, out_channels, 1)
        self.norm = GroupNorm(1, out_channels)

    def __call__(self, x):
        return self.norm(self.conv(x))


class LinearAttention(nnx.Module):
    """Attention over the H*W pixels in linear time (Shen et al. 2018, eq. 5).

    Softmax is taken of the queries over their channels, and of the keys over the pixels.
    """

    def __init__(self, channels: int, heads: int, width: int):
        self.heads = heads
        self.qkv = ConvWithoutBias(channels, 3 * width)
        self.output = AttentionOutput(width, channels)

    def __call__(self, x):
        query, key, value = heads_of_pixels(self.qkv(x), self.heads)
        query = jax.nn.softmax(upcast(query), axis=-1).astype(x.dtype) / np.sqrt(query.shape[-1]).astype(x.dtype)
        key = jax.nn.softmax(upcast(key), axis=1).astype(x.dtype)
        context = einsum("bnhd,bnhe->bhde", key, value)
        h = einsum("bhde,bnhd->bnhe", context, query)
        return self.output(h.reshape(*x.shape[:3], -1))


class Attention(nnx.Module):
    """Attention over the H*W pixels (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, channels: int, heads: int, width: int):
        self.heads = heads
        self.qkv = ConvWithoutBias(channels, 3 * width)
        self.output = Conv(width, channels, 1)

    def __call__(self, x):
        query, key, value = heads_of_pixels(self.qkv(x), self.heads)
        scores = einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]).astype(x.dtype)
        weights = jax.nn.softmax(upcast(scores), axis=-1).astype(x.dtype)  # eq. 1
        h = einsum("bhqk,bkhd->bqhd", weights, value)
        return self.output(h.reshape(*x.shape[:3], -1))


class PreNorm(nnx.Module):
    """x + attention(GroupNorm(x)), with the norm over all channels."""

    def __init__(self, channels: int, attention: nnx.Module):
        self.attention = attention
        self.norm = GroupNorm(1, channels)

    @remat_block
    def __call__(self, x):
        return self.attention(self.norm(x)) + x


class Down(nnx.Module):
    """A level on the way down: two residual blocks, attention, and what gives the next level's size and channels."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module, downsample: nnx.Module):
        self.block1, self.block2, self.attention, self.downsample = block1, block2, attention, downsample

    def __call__(self, x, skips, time):
        """Appends the outputs of the first block and of attention to `skips`."""
        x = self.block1(x, time)
        skips.append(x)
        x = self.attention(self.block2(x, time))
        skips.append(x)
        return self.downsample(x)


class Up(nnx.Module):
    """A level on the way up: like `Down`, but each block takes [x, the last skip]."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module, upsample: nnx.Module):
        self.block1, self.block2, self.attention, self.upsample = block1, block2, attention, upsample

    def __call__(self, x, skips, time):
        x = self.block1(concatenate_channels(x, skips.pop()), time)
        x = self.block2(concatenate_channels(x, skips.pop()), time)
        return self.upsample(self.attention(x))


class AnnotatedUNet(nnx.Module):
    """(x, t) -> prediction of x's shape.

    x: (B, H, W, image_channels), about within [-1, 1], H and W multiples of 2^(levels - 1). t: integers (B,) in [0, T).
    The settings are those of `AnnotatedConfig`. Activations have the dtype `dtype` (default: that of the parameters).
    The prediction has the dtype of the parameters.
    """

    def __init__(
        self,
        image_channels: int = 1,
        dim: int = 28,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        init_kernel: int = 1,
        resnet_block_groups: int = 4,
        attn_heads: int = 4,
        attn_width: int = 128,
        kernel_scale: KernelScale = "multiplied",
        dtype=None,
    ):
        self.dtype = dtype
        widths, last = [dim, *(dim * factor for factor in dim_mults)], len(dim_mults) - 1
        block = partial(ResidualBlock, time_width=4 * dim, groups=resnet_block_groups, kernel_scale=kernel_scale)

        def attention(kind: type, channels: int):
            return PreNorm(channels, kind(channels, attn_heads, attn_width))

        self.input = Conv(image_channels, dim, init_kernel)
        self.time_embedding = TimeEmbedding(dim, theta=10000, waves=0, is_random=False)
        down, up = [], []
        for level, (width, next_width) in enumerate(pairwise(widths)):
            downsample = Downsample(width, next_width) if level < last else Conv(width, next_width, 3)
            down.append(Down(block(width, width), block(width, width), attention(LinearAttention, width), downsample))
        self.middle1 = block(widths[-1], widths[-1])
        self.middle_attention = attention(Attention, widths[-1])
        self.middle2 = block(widths[-1], widths[-1])
        for level in reversed(range(len(dim_mults))):
            width, next_width = widths[level + 1], widths[level]
            upsample = Upsample(width, next_width) if level else Conv(width, next_width, 3)
            blocks = [block(width + next_width, width) for _ in range(2)]
            up.append(Up(*blocks, attention(LinearAttention, width), upsample))
        self.down, self.up = nnx.List(down), nnx.List(up)
        self.last = block(2 * dim, dim)
        self.output = Conv(dim, image_channels, 1)

    def __call__(self, x: Float[Array, "b h w c"], t: Real[Array, "b"]) -> Float[Array, "b h w c"]:
        result_dtype = self.output.kernel.dtype
        dtype = self.dtype or result_dtype
        time = self.time_embedding(t).astype(dtype)
        first = h = self.input(x.astype(dtype))
        skips: list = []
        for level in self.down:
            h = level(h, skips, time)
        h = self.middle2(self.middle_attention(self.middle1(h, time)), time)
        for level in self.up:
            h = level(h, skips, time)
        h = self.last(concatenate_channels(h, first), time)
        return self.output(h).astype(result_dtype)
