"""ADMUNet: the network of Nichol & Dhariwal 2021 and of Dhariwal & Nichol 2021 (ADM)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from torch_ref.dtypes import ExactBuffers, activations, timesteps, without_autocast
from torch_ref.embeddings import concatenated_embedding, geometric_frequencies
from torch_ref.layers import add_label, identity, label_embedding
from torch_ref.unets.ddpm import average_pool_2x2, repeat_2x2

GROUPS = 32


class ZeroProjection(nn.Conv1d):
    """A projection whose parameters start at zero."""


class ZeroConv(nn.Conv2d):
    """A convolution whose parameters start at zero."""


class TimeEmbedding(ExactBuffers):
    """t -> Linear(SiLU(Linear(cosines and sines of scale * t))), (B,) to (B, time_width)."""

    def __init__(self, width: int, time_width: int, scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", torch.from_numpy(geometric_frequencies(width)), persistent=False)
        self.add_module("0", nn.Linear(width, time_width))
        self.add_module("2", nn.Linear(time_width, time_width))

    def forward(self, t):
        linear1, linear2 = getattr(self, "0"), getattr(self, "2")
        t = t.to(self.frequencies.dtype) * self.scale
        time = concatenated_embedding(t, self.frequencies, flip_sin_to_cos=True).to(linear1.weight.dtype)
        return linear2(F.silu(linear1(time)))


class ResidualBlock(nn.Module):
    """Twice GroupNorm, SiLU and 3x3 convolution, plus x. The time comes in between.

    The time is added before the second GroupNorm. With `scale_shift` it instead scales and shifts the output of this
    GroupNorm (Dhariwal & Nichol 2021, section 3). `resample` is applied to x, and before the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int,
        scale_shift: bool,
        resample: Callable = identity,
    ):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, in_channels), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(time_width, 2 * out_channels if scale_shift else out_channels)
        )
        conv = ZeroConv(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(GROUPS, out_channels), nn.SiLU(), nn.Identity(), conv)
        self.skip_connection = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time, dropout):
        norm1, silu, conv1 = self.in_layers
        norm2, _, _, conv2 = self.out_layers
        h = conv1(self.resample(silu(norm1(x))))
        time = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = (1 + scale) * norm2(h) + shift  # AdaGN, section 3
        else:
            h = norm2(h + time)
        h = conv2(dropout(silu(h)))
        x = self.resample(x)
        return h + (x if self.skip_connection is None else self.skip_connection(x))


def multi_head(qkv: torch.Tensor, heads: int, new_order: bool) -> torch.Tensor:
    """Self-attention (Vaswani et al. 2017, section 3.2) of N tokens: qkv (B, 3C, N) to (B, C, N).

    The 3C channels are, with `new_order`, all queries, all keys and all values; otherwise the queries, keys and values
    of the first head, then those of the second, and so on.
    """
    b, c, n = qkv.shape[0], qkv.shape[1] // 3, qkv.shape[2]
    d = c // heads
    qkv = qkv.reshape(b, 3, heads, d, n) if new_order else qkv.reshape(b, heads, 3, d, n).transpose(1, 2)
    query, key, value = qkv.unbind(1)
    scale = d**-0.25  # on both factors: their product stays small in half precision
    weights = torch.softmax(torch.einsum("bhdq,bhdk->bhqk", query * scale, key * scale), dim=-1)  # eq. 1
    return torch.einsum("bhqk,bhdk->bhdq", weights, value).reshape(b, c, n)


class SelfAttention(nn.Module):
    """x + self-attention(GroupNorm(x)) over the H*W pixels, by `multi_head`."""

    def __init__(self, channels: int, heads: int, new_order: bool):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = ZeroProjection(channels, channels, 1)

    def forward(self, x, *_):
        qkv = self.qkv(self.norm(x).flatten(2))
        return x + self.proj_out(multi_head(qkv, self.heads, self.new_order)).reshape(x.shape)


class Input(nn.Conv2d):
    """3x3 convolution of the image."""

    def forward(self, x, *_):
        return super().forward(x)


class Downsample(nn.Module):
    """3x3 convolution with stride 2; without `by_convolution`, the mean of each 2x2 block."""

    def __init__(self, channels: int, by_convolution: bool):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if by_convolution else None

    def forward(self, x, *_):
        return average_pool_2x2(x) if self.op is None else self.op(x)


class Upsample(nn.Module):
    """Repeats every pixel in a 2x2 block, then 3x3 convolution, if `by_convolution`."""

    def __init__(self, channels: int, by_convolution: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if by_convolution else None

    def forward(self, x, *_):
        x = repeat_2x2(x)
        return x if self.conv is None else self.conv(x)


def down_path(
    image_channels: int,
    widths: tuple[int, ...],
    num_res_blocks: int,
    attention: tuple[bool, ...],
    resblock_updown: bool,
    conv_resample: bool,
    block: Callable,
    attend: Callable,
) -> tuple[list, list[int], list]:
    """The way down: lists of layers, the channels after each list, and the layers of the middle.

    block: (channels, output channels) -> a ResidualBlock. attend: channels -> a SelfAttention.
    """
    width, skips, deepest = widths[0], [widths[0]], len(widths) - 1
    down = [[Input(image_channels, width, 3, padding=1)]]
    for level, out in enumerate(widths):
        for _ in range(num_res_blocks):
            down.append([block(width, out)])
            if attention[level]:
                down[-1].append(attend(out))
            width = out
            skips.append(out)
        if level < deepest:
            by_block = resblock_updown
            down.append([block(out, out, resample=average_pool_2x2) if by_block else Downsample(out, conv_resample)])
            skips.append(out)
    return down, skips, [block(width, width), attend(width), block(width, width)]


class ADMUNet(nn.Module):
    """(x, t) -> prediction of x's shape. With `learned_variance` it has twice the channels: [prediction, v]."""

    def __init__(
        self,
        image_channels: int = 3,
        widths: tuple[int, ...] = (128, 256, 256, 256),
        model_channels: int | None = None,
        num_res_blocks: int = 3,
        attention: tuple[bool, ...] = (False, True, True, False),
        num_heads: int = 4,
        num_head_channels: int | None = None,
        num_heads_upsample: int | None = None,
        use_new_attention_order: bool = False,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        conv_resample: bool = True,
        time_scale: float = 1.0,
        dropout: float = 0.0,
        learned_variance: bool = False,
        num_classes: int = 0,
        null_label: bool = False,
        dtype=None,
    ):
        super().__init__()
        self.dtype, self.null_index = dtype, num_classes if null_label else None
        embedding_width = model_channels or widths[0]
        time_width = 4 * embedding_width
        block = partial(ResidualBlock, time_width=time_width, scale_shift=use_scale_shift_norm)

        def attend(channels, heads):
            heads = channels // num_head_channels if num_head_channels else heads
            return SelfAttention(channels, heads, use_new_attention_order)

        self.time_embed = TimeEmbedding(embedding_width, time_width, time_scale)
        self.label_emb = label_embedding(num_classes, null_label, time_width)
        attend_down = partial(attend, heads=num_heads)
        down, skips, middle = down_path(
            *(image_channels, widths, num_res_blocks, attention, resblock_updown, conv_resample, block, attend_down)
        )
        up, width = [], widths[-1]
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(num_res_blocks + 1):
                up.append([block(width + skips.pop(), out)])
                if attention[level]:
                    up[-1].append(attend(out, num_heads_upsample or num_heads))
                width = out
            if level > 0:
                up[-1].append(block(out, out, resample=repeat_2x2) if resblock_updown else Upsample(out, conv_resample))
        self.input_blocks = nn.ModuleList([nn.ModuleList(layers) for layers in down])
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList([nn.ModuleList(layers) for layers in up])
        output = ZeroConv(width, image_channels * (2 if learned_variance else 1), 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), output)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None, dropout: Callable = identity
    ) -> torch.Tensor:
        with without_autocast(x):
            time = add_label(self.time_embed(timesteps(x, t)), labels, self.label_emb, self.null_index)
        with activations(x, self.dtype):
            result_dtype = self.out[2].weight.dtype
            h, skips = x.to(result_dtype), []
            for layers in self.input_blocks:
                for layer in layers:
                    h = layer(h, time, dropout)
                skips.append(h)
            for layer in self.middle_block:
                h = layer(h, time, dropout)
            for layers in self.output_blocks:
                h = torch.cat([h, skips.pop()], dim=1)
                for layer in layers:
                    h = layer(h, time, dropout)
            return self.out(h).to(result_dtype)
