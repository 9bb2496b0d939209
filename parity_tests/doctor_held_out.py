"""Eleven faults that nobody looked at while the doctor was written, in a network of its own.

Run as `python -m parity_tests.doctor_held_out` for the table.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from jax_ddpm.doctor import compare
from parity_tests.doctor_faults import faults_of, judged, table
from parity_tests.doctor_weights import copy_weights, kernel, rngs, scrambled


class Next(nn.Module):
    """A ConvNeXt block: each channel's convolution, LayerNorm of channels, an MLP, a scale of each channel."""

    def __init__(self):
        super().__init__()
        self.dw, self.norm = nn.Conv2d(12, 12, 5, padding=2, groups=12), nn.LayerNorm(12)
        self.fc1, self.fc2 = nn.Linear(12, 24), nn.Linear(24, 12)
        self.gamma = nn.Parameter(torch.ones(12))

    def forward(self, x):
        h = self.norm(self.dw(x).permute(0, 2, 3, 1))
        h = self.gamma * self.fc2(F.gelu(self.fc1(h)))
        return x + h.permute(0, 3, 1, 2)


class Mixed(nn.Module):
    """Patches, the time, a ConvNeXt block, squeeze and excitation, cross attention, and a way up."""

    def __init__(self):
        super().__init__()
        self.patches, self.block, self.time = nn.Conv2d(3, 12, 2, stride=2), Next(), nn.Linear(8, 12)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(6, 12), nn.Linear(6, 12)
        self.proj = nn.Linear(12, 12)
        self.up = nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1)
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.fuse = nn.Conv2d(21, 6, 1)
        self.out = nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, x, t, context):
        phase = 2 * math.pi * t[:, None].to(x.dtype) / 1000 * torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=x.dtype)
        time = self.time(torch.cat([phase.cos(), phase.sin()], 1))
        h = self.block(self.patches(x) + time[:, :, None, None])
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3))))))
        h = h * gate[:, :, None, None]
        b, c, height, width = h.shape
        tokens = h.flatten(2).transpose(1, 2)
        q, k, v = (
            f(z).reshape(b, -1, 3, 4).transpose(1, 2)
            for f, z in ((self.q, tokens), (self.k, context), (self.v, context))
        )
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, c)
        h = (tokens + self.proj(a)).transpose(1, 2).reshape(b, c, height, width)
        large = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
        h = self.fuse(torch.cat([F.silu(self.norm(self.up(h))), large, x], 1))
        return self.out(h)


class NextPort(nnx.Module):
    def __init__(self, wrong):
        self.wrong = wrong
        self.dw = nnx.Conv(12, 12, (5, 5), padding=((2, 2), (2, 2)), feature_group_count=12, rngs=rngs())
        self.norm = nnx.LayerNorm(12, epsilon=1e-5, use_fast_variance=False, rngs=rngs())
        self.fc1, self.fc2 = nnx.Linear(12, 24, rngs=rngs()), nnx.Linear(24, 12, rngs=rngs())
        self.gamma = nnx.Param(jnp.ones(12))

    def __call__(self, x):
        h = self.fc1(self.norm(self.dw(x)))
        if self.wrong == "bias doubled in an MLP":
            h = h + self.fc1.bias[...]
        gelu = h * jax.nn.sigmoid(1.702 * h) if self.wrong == "GELU by sigmoid" else jax.nn.gelu(h, approximate=False)
        return x + self.gamma[...] * self.fc2(gelu)


class Instance(nnx.Module):
    def __init__(self, wrong):
        self.wrong = wrong
        self.scale, self.bias = nnx.Param(jnp.ones(6)), nnx.Param(jnp.zeros(6))

    def __call__(self, x):
        ddof = 1 if self.wrong == "unbiased variance of an image" else 0
        x = (x - x.mean((1, 2), keepdims=True)) / jnp.sqrt(x.var((1, 2), keepdims=True, ddof=ddof) + 1e-5)
        return x * self.scale[...] + self.bias[...]


class MixedPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.patches = nnx.Conv(3, 12, (2, 2), strides=2, padding="VALID", rngs=rngs())
        self.block, self.time = NextPort(wrong), nnx.Linear(8, 12, rngs=rngs())
        self.squeeze, self.excite = nnx.Linear(12, 4, rngs=rngs()), nnx.Linear(4, 12, rngs=rngs())
        self.q, self.k, self.v = (nnx.Linear(i, 12, rngs=rngs()) for i in (12, 6, 6))
        self.proj = nnx.Linear(12, 12, rngs=rngs())
        crop = ((1, 3), (1, 3)) if wrong == "transposed convolution's crop" else ((2, 2), (2, 2))
        self.up = nnx.ConvTranspose(12, 6, (4, 4), strides=2, padding=crop, rngs=rngs())
        self.norm, self.fuse = Instance(wrong), nnx.Conv(21, 6, (1, 1), rngs=rngs())
        self.out = nnx.Conv(6, 3, (3, 3), padding="VALID", rngs=rngs())

    def fill(self, theirs):
        copy_weights(theirs, self)
        self.block.gamma.set_value(jnp.asarray(theirs.block.gamma.detach().numpy()))
        self.norm.scale.set_value(jnp.asarray(theirs.norm.weight.detach().numpy()))
        self.norm.bias.set_value(jnp.asarray(theirs.norm.bias.detach().numpy()))
        if self.wrong == "kernel of each channel flipped":
            kernel(self.block.dw, lambda k: k[::-1, ::-1])

    def __call__(self, x, t, context):
        wrong = self.wrong
        t = t + 1 if wrong == "t off by one" else t
        phase = 2 * np.pi * t[:, None].astype(x.dtype) / 1000 * jnp.array([1.0, 2.0, 4.0, 8.0], x.dtype)
        time = self.time(jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], 1))
        h = self.block(self.patches(x) + time[:, None, None])
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(h.mean((1, 2))))))
        if wrong == "sigmoid left out of the gate":
            gate = self.excite(jax.nn.relu(self.squeeze(h.mean((1, 2)))))
        h = h * gate[:, None, None]
        b, height, width, c = h.shape
        tokens = h.reshape(b, -1, c)
        split = (4, 3) if wrong == "four heads of three" else (3, 4)
        q, k, v = (
            f(z).reshape(b, -1, *split).swapaxes(1, 2)
            for f, z in ((self.q, tokens), (self.k, context), (self.v, context))
        )
        a = jax.nn.softmax(q @ k.mT / np.sqrt(split[1])) @ v
        h = (tokens + self.proj(a.swapaxes(1, 2).reshape(b, -1, c))).reshape(b, height, width, c)
        method = "nearest" if wrong == "nearest for bilinear" else "bilinear"
        large = jax.image.resize(h, (b, 2 * height, 2 * width, c), method)
        parts = [jax.nn.silu(self.norm(self.up(h))), large, x]
        if wrong == "three parts in another order":
            parts = [parts[0], x, large]
        h = self.fuse(jnp.concatenate(parts, -1))
        mode = "symmetric" if wrong == "edge mirrored with itself" else "reflect"
        return self.out(jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode))


FAULTS = list(
    faults_of(
        "mixed",
        """
        kernel of each channel flipped; kernel_flipped; block.dw
        bias doubled in an MLP; bias_doubled|term_extra|term_doubled; block.fc1|block.fc2
        GELU by sigmoid; activation; block.fc2
        sigmoid left out of the gate; activation_missing; q|block
        four heads of three; attention_heads; proj
        transposed convolution's crop; transposed_crop; up
        unbiased variance of an image; variance_biased; norm
        nearest for bilinear; interpolation; fuse
        three parts in another order; concatenation_order; fuse
        edge mirrored with itself; padding_mode|padding; out
        t off by one; time_offset; time
        """,
    )
)


def build(wrong: str = ""):
    """The torch network, its port with a fault, and inputs in PyTorch's layout."""
    torch.manual_seed(0)
    theirs, ours, g = scrambled(Mixed()), MixedPort(wrong), np.random.default_rng(1)
    ours.fill(theirs)
    x, context = (g.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 8, 8), (2, 5, 6)))
    return theirs, ours, (x, np.array([3, 700]), context)


def examine(fault):
    return judged(fault, compare(*build(fault.wrong)))


if __name__ == "__main__":
    print(compare(*build()).sentence)
    table(FAULTS, examine)
