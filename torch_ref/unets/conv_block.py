"""ConvBlockUNet: a UNet of residual blocks with two convolutions each."""

import torch
from torch import nn
from torch.nn import functional as F

from torch_ref.dtypes import ExactBuffers, activations, timesteps, without_autocast
from torch_ref.embeddings import geometric_frequencies, interleaved_embedding
from torch_ref.layers import add_label, label_embedding


class Sinusoids(ExactBuffers):
    """t -> [sin J_i t, cos J_i t], (B,) to (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("J", torch.from_numpy(geometric_frequencies(width)))

    def forward(self, t):
        return interleaved_embedding(t, self.J)


class TimeEmbedding(nn.Sequential):
    """t -> ReLU(Linear([sin J_i t, cos J_i t])), (B,) to (B, width)."""

    def __init__(self, width: int):
        super().__init__(Sinusoids(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, t):
        sinusoids, linear, relu = self
        return relu(linear(sinusoids(t).to(linear.weight.dtype)))


class ConvBlock(nn.Module):
    """Twice 3x3 convolution, GroupNorm and SiLU, plus x. The time is added in between."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int):
        super().__init__()
        self.seq1 = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.GroupNorm(32, out_channels, eps=1e-5), nn.SiLU()
        )
        self.time_emb_linear = nn.Linear(time_width, out_channels)
        self.seq2 = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.GroupNorm(32, out_channels, eps=1e-5), nn.SiLU()
        )
        self.residual = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time):
        h = self.seq1(x)
        h = h + F.silu(self.time_emb_linear(time))[:, :, None, None]
        h = self.seq2(h)
        return h + (x if self.residual is None else self.residual(x))


class ConvBlockUNet(nn.Module):
    """(x, t) -> prediction of x's shape."""

    def __init__(
        self,
        image_channels: int = 1,
        widths: tuple[int, ...] = (64, 128, 256, 512, 1024),
        time_width: int = 256,
        num_classes: int = 0,
        null_label: bool = True,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        self.time_emb = TimeEmbedding(time_width)
        self.class_embedding = label_embedding(num_classes, null_label, time_width)
        in_channels = (image_channels, *widths[:-1])
        self.enc_convs = nn.ModuleList([ConvBlock(i, o, time_width) for i, o in zip(in_channels, widths, strict=True)])
        up_widths = widths[:0:-1]  # from the deepest level to the second one
        self.deconvs = nn.ModuleList([nn.ConvTranspose2d(w, w // 2, 2, stride=2) for w in up_widths])
        self.dec_convs = nn.ModuleList([ConvBlock(w, w // 2, time_width) for w in up_widths])
        self.output = nn.Conv2d(widths[0], image_channels, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(x):
            time = add_label(self.time_emb(timesteps(x, t)), labels, self.class_embedding, self.null_index)
        with activations(x, self.dtype):
            h = self.enc_convs[0](x.to(self.output.weight.dtype), time)
            skips = []
            for block in self.enc_convs[1:]:
                skips.append(h)
                h = block(F.max_pool2d(h, 2), time)
            for upsample, block in zip(self.deconvs, self.dec_convs, strict=True):
                h = block(torch.cat([skips.pop(), upsample(h)], dim=1), time)
            return self.output(h).to(self.output.weight.dtype)
