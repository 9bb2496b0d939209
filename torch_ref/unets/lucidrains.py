"""LucidrainsUNet: the UNet of the package denoising_diffusion_pytorch, from its version 0.27.12."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jax_ddpm.spec.lucidrains_config import TRAITS, Traits
from torch_ref.dtypes import ExactBuffers, activations, timesteps, without_autocast
from torch_ref.layers import identity


def frequencies(width: int, theta: int) -> np.ndarray:
    """theta^(-i / (d/2 - 1)) for i = 0 .. d/2 - 1: float32 (d/2,), of exponents rounded to float32."""
    exponent = np.arange(width // 2, dtype=np.float32) * np.float32(-math.log(theta) / (width // 2 - 1))
    return np.exp(exponent.astype(np.float64)).astype(np.float32)


class Sinusoids(ExactBuffers):
    """t -> [sin t f, cos t f] with fixed frequencies f; with learned or random ones w: [t, sin 2 pi t w, cos 2 pi t w].

    waves: 0 for fixed frequencies, else how many sines and cosines there are.
    """

    def __init__(self, width: int, theta: int, waves: int, is_random: bool):
        super().__init__()
        self.waves = waves
        if not waves:
            self.register_buffer("frequencies", torch.from_numpy(frequencies(width, theta)), persistent=False)
        elif is_random:
            self.register_buffer("weights", torch.full((waves // 2,), torch.nan))  # weights.initialise draws N(0, 1)
        else:
            self.weights = nn.Parameter(torch.full((waves // 2,), torch.nan))

    def forward(self, t):
        f = self.weights if self.waves else self.frequencies
        f = f.to(torch.promote_types(f.dtype, torch.float32))
        t = t.to(f.dtype)[:, None]
        if not self.waves:
            phase = t * f
            return torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)
        phase = t * f * 2 * math.pi
        return torch.cat([t, torch.sin(phase), torch.cos(phase)], dim=-1)


class TimeEmbedding(nn.Sequential):
    """t -> Linear(GELU(Linear(sines and cosines of t))), (B,) to (B, 4 width)."""

    def __init__(self, width: int, theta: int, waves: int, is_random: bool):
        super().__init__(
            Sinusoids(width, theta, waves, is_random),
            nn.Linear(waves + 1 if waves else width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, 4 * width),
        )

    def forward(self, t):
        sinusoids, linear1, gelu, linear2 = self
        return linear2(gelu(linear1(sinusoids(t).to(linear1.weight.dtype))))


class StandardizedConv(nn.Conv2d):
    """A convolution whose kernel has mean 0 and variance 1 for each output channel (Qiao et al. 2019, eq. 5)."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        kernel = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(x, kernel, self.bias, self.stride, self.padding)


class ChannelNorm(nn.Module):
    """Each pixel's channels, scaled: RMSNorm (Zhang & Sennrich 2019, eq. 4), or LayerNorm if `centred`. No bias."""

    def __init__(self, channels: int, centred: bool):
        super().__init__()
        self.centred = centred
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x):
        if self.centred:
            variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
            h = (x - mean) * torch.rsqrt(variance + 1e-5)
        else:
            h = unit_length(x, 1) * x.shape[1] ** 0.5
        return h * self.g


def unit_length(x, axis: int):
    """x / max(|x|, 1e-12) over an axis."""
    return F.normalize(x, dim=axis, eps=1e-12)


class Block(nn.Module):
    """3x3 convolution, norm, scale and shift if they are given, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, traits: Traits, groups: int):
        super().__init__()
        self.proj = (StandardizedConv if traits.standardized else nn.Conv2d)(in_channels, out_channels, 3, padding=1)
        if traits.group_norm:
            self.norm = nn.GroupNorm(groups, out_channels, eps=1e-5)
        else:
            self.norm = ChannelNorm(out_channels, centred=False)

    def forward(self, x, scale_shift=None):
        h = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
            h = (1 + scale) * h + shift
        return F.silu(h)


class ResidualBlock(nn.Module):
    """Two blocks, plus x. The time scales and shifts in the first. `dropout` is applied between them."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, traits: Traits, groups: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * out_channels))
        self.block1 = Block(in_channels, out_channels, traits, groups)
        self.block2 = Block(out_channels, out_channels, traits, groups)
        self.res_conv = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time, dropout):
        h = dropout(self.block1(x, self.mlp(time)))
        return self.block2(h) + (x if self.res_conv is None else self.res_conv(x))


class AttentionOutput(nn.Sequential):
    """1x1 convolution and norm, after linear attention."""

    def __init__(self, in_channels: int, out_channels: int, centred: bool):
        super().__init__(nn.Conv2d(in_channels, out_channels, 1), ChannelNorm(out_channels, centred))


class LinearAttention(nn.Module):
    """Attention over the H*W pixels in linear time (Shen et al. 2018, eq. 5) and `memory` trained keys and values.

    Softmax is taken of the queries over their channels, and of the keys over the pixels.
    """

    def __init__(self, channels: int, heads: int, head_width: int, memory: int, traits: Traits):
        super().__init__()
        self.heads, self.divided_values = heads, traits.divided_values
        self.norm = None if traits.wrapped else ChannelNorm(channels, traits.centred_norm)
        self.mem_kv = nn.Parameter(torch.full((2, heads, head_width, memory), torch.nan)) if memory else None
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_width, 1, bias=False)
        self.to_out = AttentionOutput(heads * head_width, channels, traits.centred_norm)

    def forward(self, x):
        query, key, value = heads_of_pixels(self.to_qkv(x if self.norm is None else self.norm(x)), self.heads)
        value = value / (x.shape[2] * x.shape[3]) if self.divided_values else value
        if self.mem_kv is not None:
            key, value = with_memory(self.mem_kv.permute(0, 3, 1, 2), key, value)
        query = torch.softmax(query, dim=-1) / query.shape[-1] ** 0.5
        key = torch.softmax(key, dim=1)
        context = torch.einsum("bnhd,bnhe->bhde", key, value)
        h = torch.einsum("bhde,bnhd->bnhe", context, query)
        return self.to_out(h.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]))


class Attention(nn.Module):
    """Attention over the H*W pixels (Vaswani et al. 2017, section 3.2), and over `memory` trained keys and values."""

    def __init__(self, channels: int, heads: int, head_width: int, memory: int, traits: Traits):
        super().__init__()
        self.heads, self.scaled_channels = heads, traits.scaled_channels
        self.norm = None if traits.wrapped else ChannelNorm(channels, traits.centred_norm)
        self.mem_kv = nn.Parameter(torch.full((2, heads, memory, head_width), torch.nan)) if memory else None
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_width, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_width, channels, 1)

    def forward(self, x):
        query, key, value = heads_of_pixels(self.to_qkv(x if self.norm is None else self.norm(x)), self.heads)
        if self.mem_kv is not None:
            key, value = with_memory(self.mem_kv.permute(0, 2, 1, 3), key, value)
        if self.scaled_channels:
            query, key = unit_length(query, 1), unit_length(key, 1)
        scale = 10.0 if self.scaled_channels else 1 / math.sqrt(query.shape[-1])
        weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", query, key) * scale, dim=-1)  # eq. 1
        h = torch.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.to_out(h.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]))


def heads_of_pixels(qkv, heads: int):
    """Query, key and value (B, H*W, heads, channels per head), which lie side by side in qkv (B, C, H, W)."""
    b, c, height, width = qkv.shape
    parts = qkv.flatten(2).transpose(1, 2).reshape(b, height * width, 3, heads, c // (3 * heads))
    return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]


def with_memory(memory, key, value):
    """Keys and values (B, N, heads, D) after the ones in memory (2, M, heads, D), which are the same for all images."""
    keys, values = (each[None].expand(key.shape[0], -1, -1, -1).to(key.dtype) for each in memory)
    return torch.cat([keys, key], dim=1), torch.cat([values, value], dim=1)


class PreNorm(nn.Module):
    """Norm, then attention, as two modules with the names of versions before 1.8."""

    def __init__(self, channels: int, attention: nn.Module, traits: Traits):
        super().__init__()
        self.fn = nn.ModuleDict({"norm": ChannelNorm(channels, traits.centred_norm), "fn": attention})

    def forward(self, x):
        return self.fn["fn"](self.fn["norm"](x))


class Downsample(nn.Sequential):
    """The four pixels of each 2x2 block side by side as channels, then 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, out_channels, 1))


class Upsample(nn.Sequential):
    """Repeats every pixel in a 2x2 block, then 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )


class Down(nn.ModuleList):
    """A level on the way down: two residual blocks, attention, and what gives the next level's size and channels."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, downsample: nn.Module):
        super().__init__([block1, block2, attention, downsample])

    def forward(self, x, skips, time, dropout):
        """Appends the outputs of the first block and of attention to `skips`."""
        block1, block2, attention, downsample = self
        x = block1(x, time, dropout)
        skips.append(x)
        x = block2(x, time, dropout)
        x = attention(x) + x
        skips.append(x)
        return downsample(x)


class Up(nn.ModuleList):
    """A level on the way up: like `Down`, but each block takes [x, the last skip]."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, upsample: nn.Module):
        super().__init__([block1, block2, attention, upsample])

    def forward(self, x, skips, time, dropout):
        block1, block2, attention, upsample = self
        x = block1(torch.cat([x, skips.pop()], dim=1), time, dropout)
        x = block2(torch.cat([x, skips.pop()], dim=1), time, dropout)
        x = attention(x) + x
        return upsample(x)


class LucidrainsUNet(nn.Module):
    """(x, t) -> prediction of x's shape. With `learned_variance` it has twice the channels: [prediction, v]."""

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
        super().__init__()
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
        self.init_conv = nn.Conv2d(image_channels * (2 if self_condition else 1), widths[0], 7, padding=3)
        self.time_mlp = TimeEmbedding(dim, sinusoidal_pos_emb_theta, waves, random_fourier_features)
        down, up = [], []
        for level, (width, next_width) in enumerate(pairwise(widths)):
            if level == levels - 1:
                downsample = nn.Conv2d(width, next_width, 3, padding=1)
            elif traits.strided:
                downsample = nn.Conv2d(width, next_width, 4, stride=2, padding=1)
            else:
                downsample = Downsample(width, next_width)
            layer = attention(level, width, full_attn[level])
            down.append(Down(block(width, width), block(width, width), layer, downsample))
        self.mid_block1 = block(widths[-1], widths[-1])
        self.mid_attn = attention(levels - 1, widths[-1], True)
        self.mid_block2 = block(widths[-1], widths[-1])
        for level in reversed(range(levels)):
            width, next_width = widths[level + 1], widths[level]
            upsample = Upsample(width, next_width) if level else nn.Conv2d(width, next_width, 3, padding=1)
            blocks = [block(width + next_width, width) for _ in range(2)]
            up.append(Up(*blocks, attention(level, width, full_attn[level]), upsample))
        self.downs, self.ups = nn.ModuleList(down), nn.ModuleList(up)
        self.final_res_block = block(2 * widths[0], widths[0])
        self.final_conv = nn.Conv2d(widths[0], image_channels * (2 if learned_variance else 1), 1)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        dropout: Callable = identity,
        x_self_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        with without_autocast(x):
            time = self.time_mlp(timesteps(x, t))
        with activations(x, self.dtype):
            x = x.to(self.final_conv.weight.dtype)
            if self.self_condition:
                x_0 = torch.zeros_like(x) if x_self_cond is None else x_self_cond.to(x.dtype)
                x = torch.cat([x_0, x], dim=1)
            first = h = self.init_conv(x)
            skips: list[torch.Tensor] = []
            for level in self.downs:
                h = level(h, skips, time, dropout)
            h = self.mid_block1(h, time, dropout)
            h = self.mid_attn(h) + h
            h = self.mid_block2(h, time, dropout)
            for level in self.ups:
                h = level(h, skips, time, dropout)
            h = self.final_res_block(torch.cat([h, first], dim=1), time, dropout)
            return self.final_conv(h).to(self.final_conv.weight.dtype)
