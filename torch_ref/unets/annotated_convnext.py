"""AnnotatedConvNextUNet: the UNet of the first version of Hugging Face's post "The Annotated Diffusion Model"."""

from functools import partial
from itertools import pairwise

import torch
from torch import nn

from torch_ref.dtypes import activations, timesteps, without_autocast
from torch_ref.unets.annotated import Attention, LinearAttention, PreNorm
from torch_ref.unets.lucidrains import TimeEmbedding


class ConvNextBlock(nn.Module):
    """Depthwise 7x7 convolution, plus the time, then norm, convolution, GELU, norm, convolution, plus x.

    As in Liu et al. 2022, figure 4, but with 3x3 convolutions, two norms, and GroupNorm over all channels. time_width:
    None for the last block, which gets no time.
    """

    def __init__(self, in_channels: int, out_channels: int, multiplier: int, time_width: int | None = None):
        super().__init__()
        inner = multiplier * out_channels
        self.mlp = None if time_width is None else nn.Sequential(nn.GELU(), nn.Linear(time_width, in_channels))
        self.ds_conv = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.net = nn.Sequential(
            nn.GroupNorm(1, in_channels, eps=1e-5),
            nn.Conv2d(in_channels, inner, 3, padding=1),
            nn.GELU(),
            nn.GroupNorm(1, inner, eps=1e-5),
            nn.Conv2d(inner, out_channels, 3, padding=1),
        )
        self.res_conv = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time):
        h = self.ds_conv(x)
        if self.mlp is not None:
            h = h + self.mlp(time)[:, :, None, None]
        return self.net(h) + (x if self.res_conv is None else self.res_conv(x))


class Down(nn.ModuleList):
    """A level on the way down: two blocks, attention, and a strided convolution to the next level if there is one."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, downsample: nn.Module | None):
        super().__init__([block1, block2, attention, nn.Identity() if downsample is None else downsample])

    def forward(self, x, skips, time):
        """Appends the output of attention to `skips`."""
        block1, block2, attention, downsample = self
        x = attention(block2(block1(x, time), time))
        skips.append(x)
        return downsample(x)


class Up(nn.ModuleList):
    """A level on the way up: the first block takes [x, the last skip]. A transposed convolution doubles the size."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, upsample: nn.Module):
        super().__init__([block1, block2, attention, upsample])

    def forward(self, x, skips, time):
        block1, block2, attention, upsample = self
        x = block2(block1(torch.cat([x, skips.pop()], dim=1), time), time)
        return upsample(attention(x))


class AnnotatedConvNextUNet(nn.Module):
    """(x, t) -> prediction of x's shape."""

    def __init__(
        self,
        image_channels: int = 1,
        dim: int = 28,
        dim_mults: tuple[int, ...] = (1, 2, 4),
        init_dim: int | None = None,
        convnext_mult: int = 2,
        attn_heads: int = 4,
        attn_width: int = 128,
        dtype=None,
    ):
        super().__init__()
        self.dtype = dtype
        widths = [init_dim or dim // 3 * 2, *(dim * factor for factor in dim_mults)]
        block = partial(ConvNextBlock, multiplier=convnext_mult, time_width=4 * dim)

        def attention(kind: type, channels: int):
            return PreNorm(channels, kind(channels, attn_heads, attn_width))

        self.init_conv = nn.Conv2d(image_channels, widths[0], 7, padding=3)
        self.time_mlp = TimeEmbedding(dim, theta=10000, waves=0, is_random=False)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (width, next_width) in enumerate(pairwise(widths), start=1):
            strided = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1)
            downsample = strided(next_width, next_width) if level < len(dim_mults) else None
            blocks = block(width, next_width), block(next_width, next_width)
            self.downs.append(Down(*blocks, attention(LinearAttention, next_width), downsample))
        self.mid_block1 = block(widths[-1], widths[-1])
        self.mid_attn = attention(Attention, widths[-1])
        self.mid_block2 = block(widths[-1], widths[-1])
        for width, next_width in reversed(list(pairwise(widths[1:]))):
            upsample = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
            blocks = block(2 * next_width, width), block(width, width)
            self.ups.append(Up(*blocks, attention(LinearAttention, width), upsample))
        self.final_conv = nn.Sequential(ConvNextBlock(dim, dim, convnext_mult), nn.Conv2d(dim, image_channels, 1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        last, output = self.final_conv
        with without_autocast(x):
            time = self.time_mlp(timesteps(x, t))
        with activations(x, self.dtype):
            h = self.init_conv(x.to(output.weight.dtype))
            skips: list[torch.Tensor] = []
            for level in self.downs:
                h = level(h, skips, time)
            h = self.mid_block2(self.mid_attn(self.mid_block1(h, time)), time)
            for level in self.ups:  # the skip of the first level is not used
                h = level(h, skips, time)
            return output(last(h, time)).to(output.weight.dtype)
