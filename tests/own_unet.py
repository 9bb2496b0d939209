"""A network of the user's own, as a test gives it to --import: in Flax, with Flax's layers, and in PyTorch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

import jax_ddpm
import torch_ref


@dataclass(frozen=True)
class OwnConfig(jax_ddpm.NetworkConfig):
    name: Literal["own_unet"] = "own_unet"
    width: int = 8
    heads: int = 2


class OwnUNet(nnx.Module):
    TORCH_NAMES: ClassVar = {"time.0": "time1", "time.2": "time2", "blocks.{}.conv": "body.{}", "out": "last"}

    def __init__(self, image_channels, width, heads, dtype=None):
        rngs = nnx.Rngs(0)
        self.time1, self.time2 = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.first = nnx.Conv(image_channels, width, (3, 3), padding=1, rngs=rngs)
        self.body = nnx.List([nnx.Conv(width, width, (3, 3), padding=1, rngs=rngs)])
        self.norm = nnx.GroupNorm(width, 2, epsilon=1e-5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Conv(width, image_channels, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x, t):
        angle = t[:, None] / 1000
        time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1).astype(x.dtype)
        h = self.first(x) + self.time2(nnx.silu(self.time1(time)))[:, None, None]
        for conv in self.body:
            h = h + self.dropout(nnx.silu(conv(self.norm(h))))
        return self.last(h + self.attention(h.reshape(h.shape[0], -1, h.shape[-1])).reshape(h.shape))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)


class TorchOwnUNet(nn.Module):
    def __init__(self, channels, width=8, heads=2):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList([Block(width)])
        self.norm = nn.GroupNorm(2, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, t):
        angle = t[:, None] / 1000
        h = self.first(x) + self.time(torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype))[:, :, None, None]
        for block in self.blocks:
            h = h + self.dropout(nn.functional.silu(block.conv(self.norm(h))))
        tokens = h.flatten(2).transpose(1, 2)
        return self.out(h + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(h.shape))


jax_ddpm.register(OwnConfig, OwnUNet)
torch_ref.register(OwnConfig, TorchOwnUNet)
