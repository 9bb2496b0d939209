"""StridedUNet: a UNet with strided convolutions on the way down and transposed ones on the way up."""

import torch
from torch import nn
from torch.nn import functional as F

from torch_ref.dtypes import activations, timesteps, without_autocast
from torch_ref.layers import add_label, label_embedding

TIME_WIDTH = 256


class TimeEmbedding(nn.Module):
    """t -> Linear(SiLU(Linear(t))), (B,) to (B, 256). t is not scaled."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, TIME_WIDTH), nn.SiLU(), nn.Linear(TIME_WIDTH, TIME_WIDTH))

    def forward(self, t):
        first, silu, second = self.embed
        dtype = torch.promote_types(first.weight.dtype, torch.float32)  # half precision would round t
        h = F.linear(t[:, None].to(dtype), first.weight.to(dtype), first.bias.to(dtype))
        return second(silu(h.to(second.weight.dtype)))


class DoubleConv(nn.Sequential):
    """Twice 3x3 convolution, GroupNorm and SiLU."""

    def __init__(self, in_channels: int, out_channels: int):
        layers = []
        for width in (in_channels, out_channels):
            conv, norm = nn.Conv2d(width, out_channels, 3, padding=1), nn.GroupNorm(8, out_channels, eps=1e-5)
            layers += [conv, norm, nn.SiLU()]
        super().__init__(*layers)


class DownBlock(nn.Module):
    """Returns features at full and at half size. The time is added before the strided convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = DoubleConv(in_channels, out_channels)
        self.time_mlp = nn.Linear(TIME_WIDTH, out_channels)
        self.down = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x, time):
        h = self.conv(x) + self.time_mlp(time)[:, :, None, None]
        return h, self.down(h)


class UpBlock(nn.Module):
    """Doubles the size, concatenates the skip, convolves, then adds the time."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels, 2, stride=2)
        self.conv = DoubleConv(in_channels + skip_channels, out_channels)
        self.time_mlp = nn.Linear(TIME_WIDTH, out_channels)

    def forward(self, x, skip, time):
        h = self.conv(torch.cat([self.up(x), skip], dim=1))
        return h + self.time_mlp(time)[:, :, None, None]


class StridedUNet(nn.Module):
    """(x, t) -> prediction of x's shape."""

    def __init__(self, image_channels: int = 3, num_classes: int = 0, null_label: bool = True, dtype=None):
        super().__init__()
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_embed = TimeEmbedding()
        self.class_embedding = label_embedding(num_classes, null_label, TIME_WIDTH)
        self.down1 = DownBlock(image_channels, 64)
        self.down2 = DownBlock(64, 128)
        self.down3 = DownBlock(128, 256)
        self.mid_conv = DoubleConv(256, 256)
        self.up1 = UpBlock(256, 128, 128)
        self.up2 = UpBlock(128, 64, 64)
        self.up3 = UpBlock(64, 64, 64)
        self.final = nn.Conv2d(64, image_channels, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(x):
            time = add_label(self.time_embed(timesteps(x, t)), labels, self.class_embedding, self.null_index)
        with activations(x, self.dtype):
            h1, half1 = self.down1(x.to(self.final.weight.dtype), time)
            _, half2 = self.down2(half1, time)
            _, half3 = self.down3(half2, time)
            h = self.up1(self.mid_conv(half3), half2, time)
            h = self.up2(h, half1, time)
            h = self.up3(h, h1, time)  # the features before the first strided convolution
            return self.final(h).to(self.final.weight.dtype)
