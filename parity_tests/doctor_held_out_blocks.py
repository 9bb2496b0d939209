"""Eleven more faults that nobody looked at before, in a second network: a transformer block between convolutions.

Run as `python -m parity_tests.doctor_held_out_blocks` for the table.
"""

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


class RootNorm(nn.Module):
    """RMSNorm with a weight."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    """Attention and a gated MLP, each with a scale, a shift and a gate that the time gives."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.modulation = RootNorm(16), RootNorm(16), nn.Linear(12, 64)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.gated, self.down = nn.Linear(16, 40), nn.Linear(20, 16)

    def forward(self, x, time):
        b, n, c = x.shape
        scale, shift, gate, last = self.modulation(F.silu(time))[:, None].chunk(4, -1)
        h = self.norm1(x) * (1 + scale) + shift
        q, k, v = self.qkv(h).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + gate * self.proj(a)
        value, gate = self.gated(self.norm2(x)).chunk(2, -1)
        return x + last * self.down(value * F.silu(gate))


class Between(nn.Module):
    """Down with a pad at the right and the bottom, a block, up by pixel shuffle, and a long skip."""

    def __init__(self):
        super().__init__()
        self.time1, self.time2 = nn.Linear(8, 12), nn.Linear(12, 12)
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2)
        self.block, self.up = Block(), nn.Conv2d(16, 32, 1)
        self.mix, self.norm, self.out = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.GroupNorm(4, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x, t):
        frequencies = 10000 ** (-torch.arange(4, dtype=x.dtype) / 4)
        phase = t[:, None].to(x.dtype) * frequencies
        time = self.time2(F.silu(self.time1(torch.stack([phase.sin(), phase.cos()], -1).flatten(1))))
        skip = self.stem(x)
        h = self.down(F.pad(skip, (0, 1, 0, 1)))
        b, c, height, width = h.shape
        h = self.block(h.flatten(2).transpose(1, 2), time).transpose(1, 2).reshape(b, c, height, width)
        h = F.pixel_shuffle(self.up(h), 2)
        h = (h + skip) / 2**0.5
        return self.out(F.silu(self.norm(self.mix(h))))


class RootNormPort(nnx.Module):
    def __init__(self, width, wrong=""):
        self.wrong, self.scale = wrong, nnx.Param(jnp.ones(width))

    def __call__(self, x):
        epsilon = 1e-5 if self.wrong == "epsilon of the first norm" else 1e-6
        root = jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
        scale = 1 + self.scale[...] if self.wrong == "one plus the weight of the first norm" else self.scale[...]
        return x / root * scale


class BlockPort(nnx.Module):
    def __init__(self, wrong):
        self.wrong = wrong
        self.norm1, self.norm2 = RootNormPort(16, wrong), RootNormPort(16)
        sizes = {"modulation": (12, 64), "qkv": (16, 48), "proj": (16, 16), "gated": (16, 40), "down": (20, 16)}
        for name, size in sizes.items():
            setattr(self, name, nnx.Linear(*size, rngs=rngs()))

    def __call__(self, x, time):
        wrong, (b, n, c) = self.wrong, x.shape
        scale, shift, gate, last = jnp.split(self.modulation(jax.nn.silu(time))[:, None], 4, -1)
        if wrong == "two parts of the modulation swapped":
            shift, gate = gate, shift
        h = self.norm1(x) * (1 + scale) + shift
        packed = self.qkv(h)
        if wrong == "packed by heads":
            q, k, v = packed.reshape(b, n, 2, 3, c // 2).transpose(3, 0, 2, 1, 4)
        else:
            q, k, v = packed.reshape(b, n, 3, 2, c // 2).transpose(2, 0, 3, 1, 4)
        a = (jax.nn.softmax(q @ k.mT / np.sqrt(c // 2)) @ v).swapaxes(1, 2).reshape(b, n, c)
        x = x + (1 if wrong == "gate left out" else gate) * self.proj(a)
        value, gate = jnp.split(self.gated(self.norm2(x)), 2, -1)
        inner = jax.nn.silu(value) * gate if wrong == "activation on the other half" else value * jax.nn.silu(gate)
        return x + last * self.down(inner)


class BetweenPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.time1, self.time2 = nnx.Linear(8, 12, rngs=rngs()), nnx.Linear(12, 12, rngs=rngs())
        one = ((1, 1), (1, 1))
        self.stem = nnx.Conv(3, 8, (3, 3), padding=one, rngs=rngs())
        padding = one if wrong == "padded on both sides" else ((0, 1), (0, 1))
        self.down = nnx.Conv(8, 16, (3, 3), strides=2, padding=padding, rngs=rngs())
        self.block, self.up = BlockPort(wrong), nnx.Conv(16, 32, (1, 1), rngs=rngs())
        self.mix = nnx.Conv(8, 8, (3, 3), padding=one, feature_group_count=2, rngs=rngs())
        self.norm = nnx.GroupNorm(8, num_groups=4, epsilon=1e-5, use_fast_variance=False, rngs=rngs())
        self.out = nnx.Conv(8, 3, (1, 1), rngs=rngs())

    def fill(self, theirs):
        copy_weights(theirs, self)
        for name in ("norm1", "norm2"):
            weight = getattr(theirs.block, name).weight
            getattr(self.block, name).scale.set_value(jnp.asarray(weight.detach().numpy()))
        if self.wrong == "kernel of a grouped convolution transposed":
            kernel(self.mix, lambda k: k.swapaxes(0, 1))

    def __call__(self, x, t):
        wrong = self.wrong
        exponent = jnp.arange(4, dtype=x.dtype) / (3 if wrong == "frequencies over n - 1" else 4)
        phase = t[:, None].astype(x.dtype) * 10000**-exponent
        time = jnp.stack([jnp.sin(phase), jnp.cos(phase)], -1).reshape(len(t), -1)
        time = self.time2(jax.nn.silu(self.time1(time)))
        skip = self.stem(x)
        h = self.down(skip)
        b, height, width, c = h.shape
        h = self.up(self.block(h.reshape(b, -1, c), time).reshape(b, height, width, c))
        if wrong == "pixel shuffle with channels last":
            h = h.reshape(b, height, width, 2, 2, 8).transpose(0, 1, 3, 2, 4, 5)
        else:
            h = h.reshape(b, height, width, 8, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        h = h.reshape(b, 2 * height, 2 * width, 8)
        h = h + skip / np.sqrt(2) if wrong == "only the skip divided" else (h + skip) / np.sqrt(2)
        return self.out(jax.nn.silu(self.norm(self.mix(h))))


FAULTS = list(
    faults_of(
        "between",
        """
        epsilon of the first norm; epsilon; block.norm1
        one plus the weight of the first norm; affine; block.norm1
        two parts of the modulation swapped; another_tensor|halves_swapped|scale_shift; block.qkv
        packed by heads; qkv_packing; block.proj
        gate left out; factor_missing|expression; block.norm2
        activation on the other half; halves_swapped|activation_order|expression; block.down
        padded on both sides; padding; down
        kernel of a grouped convolution transposed; kernel_transposed; mix
        frequencies over n - 1; frequency_exponent; time1
        pixel shuffle with channels last; axes_order|channels_permuted|interpolation|pixel_shuffle; mix
        only the skip divided; residual_scaled|scale; mix
        """,
    )
)


def build(wrong: str = ""):
    """The torch network, its port with a fault, and inputs in PyTorch's layout."""
    torch.manual_seed(0)
    theirs, ours = scrambled(Between()), BetweenPort(wrong)
    ours.fill(theirs)
    return theirs, ours, (np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32), np.array([3, 700]))


def examine(fault):
    return judged(fault, compare(*build(fault.wrong)))


if __name__ == "__main__":
    result = compare(*build())
    print(result.equal, result.sentence)
    table(FAULTS, examine)
