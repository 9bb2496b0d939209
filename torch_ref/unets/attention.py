"""AttentionUNet: residual blocks, and self-attention at the deep levels."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from torch_ref.dtypes import ExactBuffers, activations, timesteps, without_autocast
from torch_ref.layers import add_label, identity, label_embedding


class TimeEmbedding(ExactBuffers):
    """t -> Linear(SiLU(Linear([sin t f, cos t f]))), (B,) to (B, 4 channels)."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.full((channels // 2,), torch.nan))  # weights.initialise draws N(0, 1) * pi
        self.linear_seq = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels)
        )

    def forward(self, t):
        phase = t.to(self.freqs.dtype)[:, None] * self.freqs
        time = torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)
        return self.linear_seq(time.to(self.linear_seq[0].weight.dtype))


class ResidualBlock(nn.Module):
    """Twice GroupNorm, SiLU and 3x3 convolution, plus x. The time is added in between."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_channels, eps=1e-5)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb = nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-5)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time, dropout):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb(F.silu(time))[:, :, None, None]
        h = self.conv2(dropout(F.silu(self.norm2(h))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class SelfAttention(nn.MultiheadAttention):
    """Self-attention over the H*W pixels (Vaswani et al. 2017, section 3.2), without a residual connection."""

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        h, _ = super().forward(tokens, tokens, tokens, need_weights=False)
        return h.transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    """A residual block, followed by self-attention if `heads` is given."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, heads: int | None):
        super().__init__()
        self.res = ResidualBlock(in_channels, out_channels, time_width)
        self.attn = SelfAttention(out_channels, heads) if heads else None

    def forward(self, x, time, dropout):
        h = self.res(x, time, dropout)
        return h if self.attn is None else self.attn(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, time, dropout):
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Middle(nn.Module):
    """Two blocks with self-attention."""

    def __init__(self, channels: int, time_width: int, heads: int):
        super().__init__()
        self.conv1 = Block(channels, channels, time_width, heads)
        self.conv2 = Block(channels, channels, time_width, heads)

    def forward(self, x, time, dropout):
        return self.conv2(self.conv1(x, time, dropout), time, dropout)


class AttentionUNet(nn.Module):
    """(x, t) -> prediction of x's shape.

    Level l has channels * multipliers[0] * ... * multipliers[l] channels.
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
        super().__init__()
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        width, time_width = channels, 4 * channels
        self.image_proj = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.time_emb = TimeEmbedding(channels)
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
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.norm = nn.GroupNorm(8, width, eps=1e-5)
        self.final = nn.Conv2d(width, image_channels, 3, padding=1)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None, dropout: Callable = identity
    ) -> torch.Tensor:
        with without_autocast(x):
            time = add_label(self.time_emb(timesteps(x, t)), labels, self.class_embedding, self.null_index)
        with activations(x, self.dtype):
            h = self.image_proj(x.to(self.final.weight.dtype))
            skips = [h]
            for layer in self.down:
                h = layer(h, time, dropout)
                skips.append(h)
            h = self.middle(h, time, dropout)
            for layer in self.up:
                if isinstance(layer, Upsample):
                    h = layer(h)
                else:
                    h = layer(torch.cat([h, skips.pop()], dim=1), time, dropout)
            return self.final(F.silu(self.norm(h))).to(self.final.weight.dtype)
