"""DDPMUNet: the network of Ho et al. 2020, appendix B."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from torch_ref.dtypes import ExactBuffers, activations, timesteps, without_autocast
from torch_ref.embeddings import concatenated_embedding, geometric_frequencies
from torch_ref.layers import add_label, identity

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "mish": F.mish, "relu": F.relu}


class TimeEmbedding(ExactBuffers):
    """t -> Linear(SiLU(Linear(sines and cosines of t))), (B,) to (B, time_width)."""

    def __init__(self, width: int, time_width: int, flip_sin_to_cos: bool, freq_shift: int):
        super().__init__()
        self.flip_sin_to_cos = flip_sin_to_cos
        frequencies = torch.from_numpy(geometric_frequencies(width, freq_shift))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.linear_1 = nn.Linear(width, time_width)
        self.linear_2 = nn.Linear(time_width, time_width)

    def forward(self, t):
        time = concatenated_embedding(t, self.frequencies, self.flip_sin_to_cos).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(time)))


class ResidualBlock(nn.Module):
    """Twice GroupNorm, activation and 3x3 convolution, plus x. The time comes in between.

    The time is added before the second GroupNorm. With `scale_shift` it instead scales and shifts the output of this
    GroupNorm (Dhariwal & Nichol 2021, section 3). `resample` is applied to x, and before the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int,
        groups: int,
        epsilon: float,
        activation: Callable = F.silu,
        scale_shift: bool = False,
        resample: Callable = identity,
    ):
        super().__init__()
        self.activation, self.scale_shift, self.resample = activation, scale_shift, resample
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=epsilon)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=epsilon)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time, dropout):
        h = self.conv1(self.resample(self.activation(self.norm1(x))))
        time = self.time_emb_proj(self.activation(time))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = (1 + scale) * self.norm2(h) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(dropout(self.activation(h)))
        x = self.resample(x)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SelfAttention(nn.Module):
    """x + self-attention(GroupNorm(x)) over the H*W pixels (Vaswani et al. 2017, section 3.2).

    head_dim: channels per head. None: a single head. groups: None leaves GroupNorm out.
    """

    def __init__(self, channels: int, head_dim: int | None, groups: int | None, epsilon: float):
        super().__init__()
        self.heads = channels // (head_dim or channels)
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, eps=epsilon)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        b, c, height, width = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        h = h.flatten(2).transpose(1, 2)
        query, key, value = (
            layer(h).reshape(b, height * width, self.heads, c // self.heads)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / (c // self.heads) ** 0.5
        weights = torch.softmax(scores, dim=-1)  # eq. 1
        h = torch.einsum("bhqk,bkhd->bqhd", weights, value)
        return x + self.to_out[0](h.reshape(b, height * width, c)).transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """3x3 convolution with stride 2. padding 1 pads all four sides, padding 0 only the right and the bottom."""

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x, *_):
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


def average_pool_2x2(x):
    """Mean of each 2x2 block."""
    return F.avg_pool2d(x, 2)


def repeat_2x2(x):
    """Every pixel repeated in a 2x2 block."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Upsample(nn.Module):
    """Repeats every pixel in a 2x2 block, then 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, *_):
        return self.conv(repeat_2x2(x))


class Down(nn.Module):
    """A level on the way down: residual blocks, each followed by attention if it is given, then downsampling.

    in_channels: input channels of each block. block(in, out) and attention(channels) make layers. downsample: a
    `Downsample`, a `ResidualBlock` that halves the size, or None.
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, block: Callable, attention: Callable | None, downsample
    ):
        super().__init__()
        self.resnets = nn.ModuleList([block(i, out_channels) for i in in_channels])
        self.attentions = nn.ModuleList([attention(out_channels) for _ in in_channels] if attention else [])
        self.downsamplers = None if downsample is None else nn.ModuleList([downsample])

    def forward(self, x, time, dropout):
        """The outputs of all blocks and of the downsampling: these are the skips."""
        outputs = []
        for number, residual in enumerate(self.resnets):
            x = residual(x, time, dropout)
            x = self.attentions[number](x) if self.attentions else x
            outputs.append(x)
        return outputs if self.downsamplers is None else [*outputs, self.downsamplers[0](x, time, dropout)]


class Middle(nn.Module):
    """Two residual blocks, with attention between them if it is given."""

    def __init__(self, channels: int, block: Callable, attention: Callable | None):
        super().__init__()
        self.resnets = nn.ModuleList([block(channels, channels), block(channels, channels)])
        self.attentions = nn.ModuleList([attention(channels)] if attention else [])

    def forward(self, x, time, dropout):
        x = self.resnets[0](x, time, dropout)
        x = self.attentions[0](x) if self.attentions else x
        return self.resnets[1](x, time, dropout)


class Up(nn.Module):
    """A level on the way up: like `Down`, but each block takes [x, the last skip]. Then upsampling."""

    def __init__(
        self, in_channels: list[int], out_channels: int, block: Callable, attention: Callable | None, upsample
    ):
        super().__init__()
        self.resnets = nn.ModuleList([block(i, out_channels) for i in in_channels])
        self.attentions = nn.ModuleList([attention(out_channels) for _ in in_channels] if attention else [])
        self.upsamplers = None if upsample is None else nn.ModuleList([upsample])

    def forward(self, x, skips, time, dropout):
        for number, residual in enumerate(self.resnets):
            x = residual(torch.cat([x, skips.pop()], dim=1), time, dropout)
            x = self.attentions[number](x) if self.attentions else x
        return x if self.upsamplers is None else self.upsamplers[0](x, time, dropout)


class DDPMUNet(nn.Module):
    """(x, t) -> prediction of x's shape. With `learned_variance` it has twice the channels: [prediction, v]."""

    def __init__(
        self,
        image_channels: int = 3,
        widths: tuple[int, ...] = (128, 256, 256, 256),
        layers_per_block: int = 2,
        down_attention: tuple[bool, ...] = (False, True, False, False),
        up_attention: tuple[bool, ...] = (False, False, True, False),
        attention_head_dim: int | None = None,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        downsample_padding: int = 0,
        flip_sin_to_cos: bool = False,
        freq_shift: int = 1,
        center_input_sample: bool = False,
        dropout: float = 0.1,
        learned_variance: bool = False,
        resnet_time_scale_shift: str = "default",
        act_fn: str = "silu",
        time_embedding_dim: int | None = None,
        mid_block: bool = True,
        add_attention: bool = True,
        attn_norm_num_groups: int | None = None,
        resnet_downsample: tuple[bool, ...] = (),
        resnet_upsample: tuple[bool, ...] = (),
        num_class_embeds: int | None = None,
        class_embed_type: str | None = None,
        null_label: bool = False,
        dtype=None,
    ):
        super().__init__()
        self.dtype, self.center_input_sample = dtype, center_input_sample
        self.null_index = num_class_embeds - 1 if null_label else None
        scale_shift, time_width = resnet_time_scale_shift == "scale_shift", time_embedding_dim or 4 * widths[0]
        block = partial(
            ResidualBlock,
            time_width=time_width,
            groups=norm_num_groups,
            epsilon=norm_eps,
            activation=ACTIVATIONS[act_fn],
            scale_shift=scale_shift,
        )
        attention = partial(SelfAttention, head_dim=attention_head_dim, groups=norm_num_groups, epsilon=norm_eps)
        self.conv_in = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        embed_time = partial(TimeEmbedding, widths[0], time_width, flip_sin_to_cos, freq_shift)
        self.time_embedding = embed_time()
        if class_embed_type == "timestep":
            self.class_embedding = embed_time()
        elif class_embed_type == "identity":
            self.class_embedding = identity
        elif num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, time_width)
        else:
            self.class_embedding = None
        width, skips, deepest = widths[0], [widths[0]], len(widths) - 1
        by_convolution = (False,) * len(widths)
        down, up = [], []
        levels = zip(widths, down_attention, resnet_downsample or by_convolution, strict=True)
        for level, (out, has_attention, by_block) in enumerate(levels):
            in_channels = [width] + [out] * (layers_per_block - 1)
            downsample = None
            if level < deepest:
                downsample = (
                    block(out, out, resample=average_pool_2x2) if by_block else Downsample(out, downsample_padding)
                )
            down.append(Down(in_channels, out, block, attention if has_attention else None, downsample))
            width = out
            skips += [out] * (layers_per_block + (level < deepest))
        groups = attn_norm_num_groups or (None if scale_shift else norm_num_groups)
        middle_attention = partial(attention, groups=groups) if add_attention else None
        self.mid_block = Middle(width, block, middle_attention) if mid_block else None
        levels = zip(widths[::-1], up_attention, resnet_upsample or by_convolution, strict=True)
        for level, (out, has_attention, by_block) in enumerate(levels):
            in_channels = [i + skips.pop() for i in [width] + [out] * layers_per_block]
            upsample = None
            if level < deepest:
                upsample = block(out, out, resample=repeat_2x2) if by_block else Upsample(out)
            up.append(Up(in_channels, out, block, attention if has_attention else None, upsample))
            width = out
        self.down_blocks, self.up_blocks = nn.ModuleList(down), nn.ModuleList(up)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width, eps=norm_eps)
        self.conv_out = nn.Conv2d(width, image_channels * (2 if learned_variance else 1), 3, padding=1)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None, dropout: Callable = identity
    ) -> torch.Tensor:
        with without_autocast(x):
            time = add_label(self.time_embedding(timesteps(x, t)), labels, self.class_embedding, self.null_index)
        with activations(x, self.dtype):
            x = x.to(self.conv_out.weight.dtype)
            h = self.conv_in(2 * x - 1 if self.center_input_sample else x)
            skips = [h]
            for level in self.down_blocks:
                skips += level(skips[-1], time, dropout)
            h = skips[-1] if self.mid_block is None else self.mid_block(skips[-1], time, dropout)
            for level in self.up_blocks:
                h = level(h, skips, time, dropout)
            return self.conv_out(F.silu(self.conv_norm_out(h))).to(self.conv_out.weight.dtype)
