"""DDPMConditionalUNet: the UNet of dome272's Diffusion-Models-pytorch, with and without labels."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from torch_ref.dtypes import ExactBuffers, activations, timesteps, without_autocast
from torch_ref.embeddings import concatenated_embedding
from torch_ref.layers import add_label, label_embedding
from torch_ref.unets.attention import SelfAttention


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
        labels = torch.as_tensor(labels, device=time.device)
        if labels.is_floating_point():
            labels = labels[:, : embedding.num_embeddings]
        else:
            classes = torch.arange(embedding.num_embeddings, device=time.device)
            labels = (labels.expand(len(time))[:, None] == classes).to(time.dtype)
    return add_label(time, labels, embedding, null_index)


class Sinusoids(ExactBuffers):
    """t -> [sin t f, cos t f], (B,) to (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequencies", torch.from_numpy(frequencies(width)), persistent=False)

    def forward(self, t):
        return concatenated_embedding(t, self.frequencies, flip_sin_to_cos=False)


class DoubleConv(nn.Module):
    """Twice 3x3 convolution and GroupNorm over the whole image, GELU in between. With `residual`: GELU(x + that)."""

    def __init__(self, in_channels: int, out_channels: int, middle_channels: int | None = None, residual: bool = False):
        super().__init__()
        self.residual, middle_channels = residual, middle_channels or out_channels
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, middle_channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, middle_channels, eps=1e-5),
            nn.GELU(),
            nn.Conv2d(middle_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, out_channels, eps=1e-5),
        )

    def forward(self, x):
        h = self.double_conv(x)
        return F.gelu(x + h) if self.residual else h


class AttentionBlock(nn.Module):
    """Self-attention over the H*W pixels, then two linear layers of each pixel: both after LayerNorm, both plus x."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.mha = SelfAttention(channels, heads)
        self.ln = nn.LayerNorm([channels], eps=1e-5)
        self.ff_self = nn.Sequential(
            nn.LayerNorm([channels], eps=1e-5), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x):
        h = self.mha(self.ln(x.movedim(1, -1)).movedim(-1, 1)) + x
        return self.ff_self(h.movedim(1, -1)).movedim(-1, 1) + h


class Down(nn.Module):
    """2x2 max pooling, two blocks, plus the time."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(
            nn.MaxPool2d(2),
            DoubleConv(in_channels, in_channels, residual=True),
            DoubleConv(in_channels, out_channels),
        )
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_width, out_channels))

    def forward(self, x, time):
        return self.maxpool_conv(x) + self.emb_layer(time)[:, :, None, None]


class Up(nn.Module):
    """Doubles the size, concatenates the skip before it, two blocks, plus the time."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int):
        super().__init__()
        self.conv = nn.Sequential(
            DoubleConv(in_channels, in_channels, residual=True),
            DoubleConv(in_channels, out_channels, in_channels // 2),
        )
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_width, out_channels))

    def forward(self, x, skip, time):
        return self.conv(torch.cat([skip, bilinear_2x2(x)], dim=1)) + self.emb_layer(time)[:, :, None, None]


def bilinear_2x2(x):
    """x (B, C, H, W) interpolated to (B, C, 2H, 2W), corners on corners (align_corners)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class DDPMConditionalUNet(nn.Module):
    """(x, t) -> prediction of x's shape."""

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
        super().__init__()
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_width, n = time_width, channels
        deepest = 4 * n if remove_deep_conv else 8 * n
        self.sinusoids = Sinusoids(time_width)
        self.label_emb = label_embedding(num_classes, False, time_width)
        self.inc = DoubleConv(image_channels, n)
        self.down1 = Down(n, 2 * n, time_width)
        self.sa1 = AttentionBlock(2 * n, heads)
        self.down2 = Down(2 * n, 4 * n, time_width)
        self.sa2 = AttentionBlock(4 * n, heads)
        self.down3 = Down(4 * n, 4 * n, time_width)
        self.sa3 = AttentionBlock(4 * n, heads)
        self.bot1 = DoubleConv(4 * n, deepest)
        self.bot2 = None if remove_deep_conv else DoubleConv(deepest, deepest)
        self.bot3 = DoubleConv(deepest, 4 * n)
        self.up1 = Up(8 * n, 2 * n, time_width)
        self.sa4 = AttentionBlock(2 * n, heads)
        self.up2 = Up(4 * n, n, time_width)
        self.sa5 = AttentionBlock(n, heads)
        self.up3 = Up(2 * n, n, time_width)
        self.sa6 = AttentionBlock(n, heads)
        self.outc = nn.Conv2d(n, image_channels, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        weight = self.outc.weight
        with without_autocast(x):
            time = add_class(self.sinusoids(timesteps(x, t)), labels, self.label_emb, self.null_index)
        with activations(x, self.dtype):
            time = time.to(weight.dtype)
            h1 = self.inc(x.to(weight.dtype))
            h2 = self.sa1(self.down1(h1, time))
            h3 = self.sa2(self.down2(h2, time))
            h = self.bot1(self.sa3(self.down3(h3, time)))
            h = self.bot3(h if self.bot2 is None else self.bot2(h))
            h = self.sa4(self.up1(h, h3, time))
            h = self.sa5(self.up2(h, h2, time))
            h = self.sa6(self.up3(h, h1, time))
            return self.outc(h).to(weight.dtype)
