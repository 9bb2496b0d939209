"""SuperMinDDPM: the convolutions in a row of `superminddpm.py` in cloneofsimo's minDiffusion. It does not use t."""

from itertools import pairwise

import torch
from torch import nn

from torch_ref.dtypes import activations, timesteps


class Block(nn.Sequential):
    """Convolution, BatchNorm and leaky ReLU with the slope 0.01."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1),
            nn.LeakyReLU(0.01),
        )


class SuperMinDDPM(nn.Module):
    """(x, t) -> prediction of x's shape, the same for every t."""

    def __init__(
        self,
        image_channels: int = 1,
        widths: tuple[int, ...] = (64, 128, 256, 512, 256, 128, 64),
        kernel_size: int = 7,
        dtype=None,
    ):
        super().__init__()
        self.dtype = dtype
        blocks = [Block(i, o, kernel_size) for i, o in pairwise((image_channels, *widths))]
        self.conv = nn.Sequential(*blocks, nn.Conv2d(widths[-1], image_channels, 3, padding=1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        timesteps(x, t)  # as in all networks, a wrong t is an error
        dtype = self.conv[-1].weight.dtype
        with activations(x, self.dtype):
            return self.conv(x.to(dtype)).to(dtype)
