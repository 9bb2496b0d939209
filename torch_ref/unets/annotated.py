"""AnnotatedUNet: the UNet of Hugging Face's post "The Annotated Diffusion Model", in its version with ResNet blocks."""

from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from jax_ddpm.spec.annotated_config import KernelScale
from torch_ref.dtypes import activations, timesteps, without_autocast
from torch_ref.unets.lucidrains import Downsample, TimeEmbedding, Upsample, heads_of_pixels


class ScaledConv(nn.Conv2d):
    """A convolution whose kernel is scaled for each output channel, after its mean is subtracted.

    multiplied: by its standard deviation, as the post's code does. divided: by it (Qiao et al. 2019, eq. 5).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, kernel_scale: KernelScale):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.kernel_scale = kernel_scale

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = {"multiplied": torch.sqrt, "divided": torch.rsqrt}[self.kernel_scale]
        kernel = (self.weight - mean) * scale(variance + 1e-5)
        return F.conv2d(x, kernel, self.bias, self.stride, self.padding)


class Block(nn.Module):
    """3x3 convolution, GroupNorm, scale and shift if they are given, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, kernel_scale: KernelScale):
        super().__init__()
        self.proj = ScaledConv(in_channels, out_channels, 3, kernel_scale)
        self.norm = nn.GroupNorm(groups, out_channels, eps=1e-5)

    def forward(self, x, scale_shift=None):
        h = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
            h = (1 + scale) * h + shift
        return F.silu(h)


class ResidualBlock(nn.Module):
    """Two blocks, plus x. The time scales and shifts in the first."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, groups: int, kernel_scale: KernelScale):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * out_channels))
        self.block1 = Block(in_channels, out_channels, groups, kernel_scale)
        self.block2 = Block(out_channels, out_channels, groups, kernel_scale)
        self.res_conv = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time):
        h = self.block2(self.block1(x, self.mlp(time)))
        return h + (x if self.res_conv is None else self.res_conv(x))


class AttentionOutput(nn.Sequential):
    """1x1 convolution, and GroupNorm over all channels, after linear attention."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Conv2d(in_channels, out_channels, 1), nn.GroupNorm(1, out_channels, eps=1e-5))


class LinearAttention(nn.Module):
    """Attention over the H*W pixels in linear time (Shen et al. 2018, eq. 5).

    Softmax is taken of the queries over their channels, and of the keys over the pixels.
    """

    def __init__(self, channels: int, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * width, 1, bias=False)
        self.to_out = AttentionOutput(width, channels)

    def forward(self, x):
        query, key, value = heads_of_pixels(self.to_qkv(x), self.heads)
        query = torch.softmax(query, dim=-1) / query.shape[-1] ** 0.5
        key = torch.softmax(key, dim=1)
        context = torch.einsum("bnhd,bnhe->bhde", key, value)
        h = torch.einsum("bhde,bnhd->bnhe", context, query)
        return self.to_out(h.flatten(2).transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))


class Attention(nn.Module):
    """Attention over the H*W pixels (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, channels: int, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * width, 1, bias=False)
        self.to_out = nn.Conv2d(width, channels, 1)

    def forward(self, x):
        query, key, value = heads_of_pixels(self.to_qkv(x), self.heads)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        weights = torch.softmax(scores, dim=-1)  # eq. 1
        h = torch.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.to_out(h.flatten(2).transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))


class PreNorm(nn.Module):
    """x + attention(GroupNorm(x)), with the norm over all channels."""

    def __init__(self, channels: int, attention: nn.Module):
        super().__init__()
        self.fn = nn.ModuleDict({"fn": attention, "norm": nn.GroupNorm(1, channels, eps=1e-5)})

    def forward(self, x):
        return self.fn["fn"](self.fn["norm"](x)) + x


class Down(nn.ModuleList):
    """A level on the way down: two residual blocks, attention, and what gives the next level's size and channels."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, downsample: nn.Module):
        super().__init__([block1, block2, attention, downsample])

    def forward(self, x, skips, time):
        """Appends the outputs of the first block and of attention to `skips`."""
        block1, block2, attention, downsample = self
        x = block1(x, time)
        skips.append(x)
        x = attention(block2(x, time))
        skips.append(x)
        return downsample(x)


class Up(nn.ModuleList):
    """A level on the way up: like `Down`, but each block takes [x, the last skip]."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, upsample: nn.Module):
        super().__init__([block1, block2, attention, upsample])

    def forward(self, x, skips, time):
        block1, block2, attention, upsample = self
        x = block1(torch.cat([x, skips.pop()], dim=1), time)
        x = block2(torch.cat([x, skips.pop()], dim=1), time)
        return upsample(attention(x))


class AnnotatedUNet(nn.Module):
    """(x, t) -> prediction of x's shape."""

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
        super().__init__()
        self.dtype = dtype
        widths, last = [dim, *(dim * factor for factor in dim_mults)], len(dim_mults) - 1
        block = partial(ResidualBlock, time_width=4 * dim, groups=resnet_block_groups, kernel_scale=kernel_scale)

        def attention(kind: type, channels: int):
            return PreNorm(channels, kind(channels, attn_heads, attn_width))

        self.init_conv = nn.Conv2d(image_channels, dim, init_kernel, padding=init_kernel // 2)
        self.time_mlp = TimeEmbedding(dim, theta=10000, waves=0, is_random=False)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (width, next_width) in enumerate(pairwise(widths)):
            downsample = Downsample(width, next_width) if level < last else nn.Conv2d(width, next_width, 3, padding=1)
            self.downs.append(
                Down(block(width, width), block(width, width), attention(LinearAttention, width), downsample)
            )
        self.mid_block1 = block(widths[-1], widths[-1])
        self.mid_attn = attention(Attention, widths[-1])
        self.mid_block2 = block(widths[-1], widths[-1])
        for level in reversed(range(len(dim_mults))):
            width, next_width = widths[level + 1], widths[level]
            upsample = Upsample(width, next_width) if level else nn.Conv2d(width, next_width, 3, padding=1)
            blocks = [block(width + next_width, width) for _ in range(2)]
            self.ups.append(Up(*blocks, attention(LinearAttention, width), upsample))
        self.final_res_block = block(2 * dim, dim)
        self.final_conv = nn.Conv2d(dim, image_channels, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with without_autocast(x):
            time = self.time_mlp(timesteps(x, t))
        with activations(x, self.dtype):
            first = h = self.init_conv(x.to(self.final_conv.weight.dtype))
            skips: list[torch.Tensor] = []
            for level in self.downs:
                h = level(h, skips, time)
            h = self.mid_block2(self.mid_attn(self.mid_block1(h, time)), time)
            for level in self.ups:
                h = level(h, skips, time)
            h = self.final_res_block(torch.cat([h, first], dim=1), time)
            return self.final_conv(h).to(self.final_conv.weight.dtype)
