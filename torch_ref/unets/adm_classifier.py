"""ADMClassifier: the classifier of noisy images of Dhariwal & Nichol 2021, the way down of `adm` and a pooling."""

from functools import partial

import torch
from torch import nn

from torch_ref.dtypes import activations, timesteps, without_autocast
from torch_ref.layers import identity
from torch_ref.unets.adm import GROUPS, ResidualBlock, SelfAttention, TimeEmbedding, down_path, multi_head


class AttentionPool(nn.Module):
    """What self-attention gives for the mean of the pixels, beside the pixels: (B, C, H, W) to (B, K).

    Radford et al. 2021, section 2.4. Each token has a learned position.
    """

    def __init__(self, map_size: int, channels: int, heads: int, num_classes: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, map_size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, num_classes, 1)

    def forward(self, x):
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2)
        x = x + self.positional_embedding
        h = multi_head(self.qkv_proj(x), self.heads, True)
        return self.c_proj(h[:, :, :1])[:, :, 0]


class ADMClassifier(nn.Module):
    """(x, t) -> logits (B, K) of the classes of the clean images."""

    def __init__(
        self,
        image_channels: int = 3,
        widths: tuple[int, ...] = (128, 256, 384, 512),
        model_channels: int | None = None,
        num_res_blocks: int = 4,
        attention: tuple[bool, ...] = (False, True, True, True),
        num_head_channels: int = 64,
        use_new_attention_order: bool = False,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        conv_resample: bool = True,
        time_scale: float = 1.0,
        pool: str = "attention",
        map_size: int | None = 8,
        num_classes: int = 1000,
        dtype=None,
    ):
        super().__init__()
        self.dtype = dtype
        embedding_width, width = model_channels or widths[0], widths[-1]
        block = partial(ResidualBlock, time_width=4 * embedding_width, scale_shift=use_scale_shift_norm)

        def attend(channels):
            return SelfAttention(channels, channels // num_head_channels, use_new_attention_order)

        self.time_embed = TimeEmbedding(embedding_width, 4 * embedding_width, time_scale)
        down, _, middle = down_path(
            *(image_channels, widths, num_res_blocks, attention, resblock_updown, conv_resample, block, attend)
        )
        self.input_blocks = nn.ModuleList([nn.ModuleList(layers) for layers in down])
        self.middle_block = nn.ModuleList(middle)
        if pool == "attention":
            pooling = [AttentionPool(map_size, width, width // num_head_channels, num_classes)]
        else:
            pooling = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, num_classes, 1), nn.Flatten()]
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), *pooling)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with without_autocast(x):
            time = self.time_embed(timesteps(x, t))
        result_dtype = self.out[0].weight.dtype
        with activations(x, self.dtype):
            h = x.to(result_dtype)
            for layers in self.input_blocks:
                for layer in layers:
                    h = layer(h, time, identity)
            for layer in self.middle_block:
                h = layer(h, time, identity)
        with without_autocast(x):
            return self.out(h.to(result_dtype))
