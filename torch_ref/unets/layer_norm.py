"""LayerNormUNet: a small UNet for 28x28 images with LayerNorm over whole images."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from jax_ddpm.spec.types import TimeActivation
from torch_ref.dtypes import activations, timesteps
from torch_ref.embeddings import sinusoid_table
from torch_ref.layers import add_label, label_embedding

TIME_WIDTH = 100
TIME_ACTIVATIONS = {"silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}  # the slope is 0.01


class Block(nn.Module):
    """LayerNorm, then twice 3x3 convolution and SiLU. Without `normalize`, LayerNorm's parameters are unused."""

    def __init__(self, size: int, in_channels: int, out_channels: int, normalize: bool = True):
        super().__init__()
        self.normalize = normalize
        self.ln = nn.LayerNorm((in_channels, size, size), eps=1e-5)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x):
        h = self.ln(x) if self.normalize else x
        return F.silu(self.conv2(F.silu(self.conv1(h))))


class TimeTable(nn.Module):
    """A vector for each t, not trained."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(sinusoid_table(rows, width)))

    def forward(self, t):
        return self.weight[t]


class TimeMLP(nn.Sequential):
    """Linear(activation(Linear(row of the time table))): one number per channel of a stage's input."""

    def __init__(self, channels: int, activation: Callable):
        super().__init__(nn.Linear(TIME_WIDTH, channels), activation(), nn.Linear(channels, channels))

    def forward(self, time):
        return super().forward(time)[:, :, None, None]


class Stage(nn.Sequential):
    """Three blocks. The caller adds the time to their input."""

    def __init__(self, size: int, channels: tuple[int, int, int, int], normalize_last: bool = True):
        c0, c1, c2, c3 = channels
        super().__init__(Block(size, c0, c1), Block(size, c1, c2), Block(size, c2, c3, normalize_last))


class LayerNormUNet(nn.Module):
    """(x, t) -> prediction of x's shape."""

    def __init__(
        self,
        image_channels: int = 1,
        table_rows: int = 1000,
        num_classes: int = 0,
        null_label: bool = True,
        time_activation: TimeActivation = "silu",
        dtype=None,
    ):
        super().__init__()
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_embed = TimeTable(table_rows, TIME_WIDTH)
        self.class_embedding = label_embedding(num_classes, null_label, TIME_WIDTH)
        activation = TIME_ACTIVATIONS[time_activation]
        self.te1, self.b1 = TimeMLP(image_channels, activation), Stage(28, (image_channels, 10, 10, 10))
        self.down1 = nn.Conv2d(10, 10, 4, stride=2, padding=1)
        self.te2, self.b2 = TimeMLP(10, activation), Stage(14, (10, 20, 20, 20))
        self.down2 = nn.Conv2d(20, 20, 4, stride=2, padding=1)
        self.te3, self.b3 = TimeMLP(20, activation), Stage(7, (20, 40, 40, 40))
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2), nn.SiLU(), nn.Conv2d(40, 40, 4, stride=2, padding=1))
        self.te_mid, self.b_mid = TimeMLP(40, activation), Stage(3, (40, 20, 20, 40))
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(40, 40, 4, stride=2, padding=1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2)
        )
        self.te4, self.b4 = TimeMLP(80, activation), Stage(7, (80, 40, 20, 20))
        self.up2 = nn.ConvTranspose2d(20, 20, 4, stride=2, padding=1)
        self.te5, self.b5 = TimeMLP(40, activation), Stage(14, (40, 20, 10, 10))
        self.up3 = nn.ConvTranspose2d(10, 10, 4, stride=2, padding=1)
        self.te_out, self.b_out = TimeMLP(20, activation), Stage(28, (20, 10, 10, 10), normalize_last=False)
        self.conv_out = nn.Conv2d(10, image_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        time = add_label(self.time_embed(timesteps(x, t)), labels, self.class_embedding, self.null_index)
        with activations(x, self.dtype):
            h1 = self.b1(x.to(self.conv_out.weight.dtype) + self.te1(time))
            h = self.down1(h1)
            h2 = self.b2(h + self.te2(time))
            h = self.down2(h2)
            h3 = self.b3(h + self.te3(time))
            h = self.down3(h3)
            h = self.b_mid(h + self.te_mid(time))
            h = torch.cat([h3, self.up1(h)], dim=1)
            h = self.b4(h + self.te4(time))
            h = torch.cat([h2, self.up2(h)], dim=1)
            h = self.b5(h + self.te5(time))
            h = torch.cat([h1, self.up3(h)], dim=1)
            h = self.b_out(h + self.te_out(time))
            return self.conv_out(h).to(self.conv_out.weight.dtype)
