"""ContextUNet: the UNet of TeaPearce's Conditional_Diffusion_MNIST; labels and time scale and shift its features."""

import torch
from torch import nn
from torch.nn import functional as F

from jax_ddpm.spec.errors import UserError
from torch_ref.dtypes import activations, timesteps, without_autocast


class ConvBlock(nn.Module):
    """Twice 3x3 convolution, BatchNorm and GELU.

    With `residual`, plus x, or plus the first activation where the channels change, all divided by 1.414.
    """

    def __init__(self, in_channels: int, out_channels: int, residual: bool = False):
        super().__init__()
        self.residual, self.same_channels = residual, in_channels == out_channels

        def layers(width: int) -> nn.Sequential:
            norm = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1)
            return nn.Sequential(nn.Conv2d(width, out_channels, 3, padding=1), norm, nn.GELU())

        self.conv1, self.conv2 = layers(in_channels), layers(out_channels)

    def forward(self, x):
        first = self.conv1(x)
        second = self.conv2(first)
        return ((x if self.same_channels else first) + second) / 1.414 if self.residual else second


class DownBlock(nn.Module):
    """A block, then 2x2 max pooling."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.model = nn.Sequential(ConvBlock(in_channels, out_channels), nn.MaxPool2d(2))

    def forward(self, x):
        return self.model(x)


class UpBlock(nn.Module):
    """Concatenates the skip, doubles the size, then two blocks."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2),
            ConvBlock(out_channels, out_channels),
            ConvBlock(out_channels, out_channels),
        )

    def forward(self, x, skip):
        return self.model(torch.cat([x, skip], dim=1))


class Embedding(nn.Module):
    """Linear(GELU(Linear(x))), (B, in_features) to (B, features)."""

    def __init__(self, in_features: int, features: int):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(in_features, features), nn.GELU(), nn.Linear(features, features))

    def forward(self, x):
        first, gelu, second = self.model
        dtype = torch.promote_types(first.weight.dtype, torch.float32)  # half precision would round t / T
        h = F.linear(x.to(dtype), first.weight.to(dtype), first.bias.to(dtype))
        return second(gelu(h).to(second.weight.dtype))


def contexts(labels, num_classes: int, batch: int, null_index: int | None, dtype):
    """Labels as vectors (B, num_classes): minus the one-hot vector of a class, zeros for the null label.

    labels: integers (B,), one integer for all, floats (B, rows) that mix labels, or None. Raises UserError for None
    without a null label.
    """
    if labels is None:
        if null_index is None:
            raise UserError("This network needs a label for each image, because it has no null label: give labels.")
        labels = num_classes
    labels = torch.as_tensor(labels)
    if labels.is_floating_point():
        return -labels[:, :num_classes].to(dtype)
    labels = labels if labels.ndim else labels.expand(batch)
    return -(labels[:, None] == torch.arange(num_classes, device=labels.device)).to(dtype)


class ContextUNet(nn.Module):
    """(x, t, labels) -> prediction of x's shape."""

    def __init__(
        self,
        image_channels: int = 1,
        channels: int = 128,
        pool: int = 7,
        num_classes: int = 10,
        null_label: bool = True,
        dtype=None,
    ):
        super().__init__()
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.pool, self.num_classes, n = pool, num_classes, channels
        self.init_conv = ConvBlock(image_channels, n, residual=True)
        self.down1 = DownBlock(n, n)
        self.down2 = DownBlock(n, 2 * n)
        self.timeembed1 = Embedding(1, 2 * n)
        self.timeembed2 = Embedding(1, n)
        self.contextembed1 = Embedding(num_classes, 2 * n)
        self.contextembed2 = Embedding(num_classes, n)
        self.up0 = nn.Sequential(
            nn.ConvTranspose2d(2 * n, 2 * n, pool, stride=pool), nn.GroupNorm(8, 2 * n, eps=1e-5), nn.ReLU()
        )
        self.up1 = UpBlock(4 * n, n)
        self.up2 = UpBlock(2 * n, n)
        self.out = nn.Sequential(
            nn.Conv2d(2 * n, n, 3, padding=1),
            nn.GroupNorm(8, n, eps=1e-5),
            nn.ReLU(),
            nn.Conv2d(n, image_channels, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        weight = self.out[0].weight
        with without_autocast(x):
            time = timesteps(x, t)[:, None]
            context = contexts(labels, self.num_classes, x.shape[0], self.null_index, weight.dtype).to(x.device)
            scale1, shift1 = self.contextembed1(context)[:, :, None, None], self.timeembed1(time)[:, :, None, None]
            scale2, shift2 = self.contextembed2(context)[:, :, None, None], self.timeembed2(time)[:, :, None, None]
        with activations(x, self.dtype):
            h0 = self.init_conv(x.to(weight.dtype))
            h1 = self.down1(h0)
            h2 = self.down2(h1)
            h = self.up0(F.gelu(F.avg_pool2d(h2, self.pool)))
            h = self.up1(scale1 * h + shift1, h2)
            h = self.up2(scale2 * h + shift2, h1)
            return self.out(torch.cat([h, h0], dim=1)).to(weight.dtype)
