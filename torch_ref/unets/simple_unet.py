"""SimpleUNet: the UNet of DeepFindr's notebook "Diffusion models from scratch in PyTorch"."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from torch_ref.dtypes import ExactBuffers, activations, timesteps, without_autocast
from torch_ref.embeddings import concatenated_embedding, geometric_frequencies
from torch_ref.layers import add_label, label_embedding


class Sinusoids(ExactBuffers):
    """t -> [sin t f, cos t f], (B,) to (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        frequencies = torch.from_numpy(geometric_frequencies(width, freq_shift=1))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t):
        return concatenated_embedding(t, self.frequencies, flip_sin_to_cos=False)


class TimeEmbedding(nn.Sequential):
    """t -> ReLU(Linear([sin t f, cos t f])), (B,) to (B, width)."""

    def __init__(self, width: int):
        super().__init__(Sinusoids(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, t):
        sinusoids, linear, relu = self
        return relu(linear(sinusoids(t).to(linear.weight.dtype)))


class Block(nn.Module):
    """Twice 3x3 convolution, ReLU and BatchNorm, with the time in between, then the size is halved, or doubled if `up`.

    On the way up, the input has `in_channels` channels, and as many of the skip connection.
    """

    def __init__(self, in_channels: int, out_channels: int, time_width: int, up: bool = False):
        super().__init__()
        self.time_mlp = nn.Linear(time_width, out_channels)
        self.conv1 = nn.Conv2d(2 * in_channels if up else in_channels, out_channels, 3, padding=1)
        resample = nn.ConvTranspose2d if up else nn.Conv2d
        self.transform = resample(out_channels, out_channels, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bnorm1 = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1)
        self.bnorm2 = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1)

    def forward(self, x, time):
        h = self.bnorm1(F.relu(self.conv1(x)))
        h = h + F.relu(self.time_mlp(time))[:, :, None, None]
        return self.transform(self.bnorm2(F.relu(self.conv2(h))))


class SimpleUNet(nn.Module):
    """(x, t) -> prediction of x's shape."""

    def __init__(
        self,
        image_channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512, 1024),
        time_width: int = 32,
        num_classes: int = 0,
        null_label: bool = True,
        dtype=None,
    ):
        super().__init__()
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_mlp = TimeEmbedding(time_width)
        self.class_embedding = label_embedding(num_classes, null_label, time_width)
        self.conv0 = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList([Block(i, o, time_width) for i, o in pairs])
        self.ups = nn.ModuleList([Block(i, o, time_width, up=True) for o, i in reversed(pairs)])
        self.output = nn.Conv2d(widths[0], image_channels, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(x):
            time = add_label(self.time_mlp(timesteps(x, t)), labels, self.class_embedding, self.null_index)
        with activations(x, self.dtype):
            h = self.conv0(x.to(self.output.weight.dtype))
            skips = []
            for block in self.downs:
                h = block(h, time)
                skips.append(h)
            for block in self.ups:
                h = block(torch.cat([h, skips.pop()], dim=1), time)
            return self.output(h).to(self.output.weight.dtype)
