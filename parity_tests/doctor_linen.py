"""Ports to flax.linen, each right or with one fault: a network with attention and time, and one of residual blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import linen
from torch import nn

from parity_tests.doctor_faults import faults_of
from parity_tests.doctor_weights import scrambled

ONE = ((1, 1), (1, 1))


class Attentive(nn.Module):
    """A convolution, the time, GroupNorm, attention over the pixels, and an MLP."""

    def __init__(self):
        super().__init__()
        self.stem, self.time = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 8)
        self.norm1, self.norm2 = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        phase = t[:, None].to(x.dtype) * torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=x.dtype)
        h = self.stem(x) + self.time(F.silu(phase.sin()))[:, :, None, None]
        h = self.conv(F.silu(self.norm1(h)))
        b, c, height, width = h.shape
        tokens = self.norm2(h).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(b, -1, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) * (c // 2) ** -0.5).softmax(-1) @ v
        tokens = h.flatten(2).transpose(1, 2) + self.proj(a.transpose(1, 2).reshape(b, -1, c))
        tokens = tokens + self.fc2(F.gelu(self.fc1(tokens)))
        return self.out(tokens.transpose(1, 2).reshape(b, c, height, width))


class AttentivePort(linen.Module):
    """All names are Linen's own but for those of the attention."""

    wrong: str = ""

    @linen.compact
    def __call__(self, x, t):
        wrong = self.wrong
        phase = t[:, None].astype(x.dtype) * jnp.array([1.0, 0.3, 0.1, 0.03], x.dtype)
        time = jnp.sin(phase) if wrong == "time without SiLU" else jax.nn.silu(jnp.sin(phase))
        h = linen.Conv(8, (3, 3), padding=ONE)(x) + linen.Dense(8)(time)[:, None, None]
        epsilon = 1e-6 if wrong == "epsilon" else 1e-5
        h = linen.GroupNorm(num_groups=2, epsilon=epsilon, use_fast_variance=False)(h)
        h = h if wrong == "SiLU left out" else jax.nn.silu(h)
        h = linen.Conv(8, (3, 3), strides=(2, 2), padding="SAME" if wrong == "SAME padding" else ONE)(h)
        b, height, width, c = h.shape
        groups = 4 if wrong == "four groups" else 2
        norm = linen.GroupNorm(num_groups=groups, epsilon=1e-5, use_fast_variance=False)
        tokens = norm(h).reshape(b, -1, c)
        packed = linen.Dense(3 * c, name="qkv")(tokens)
        q, k, v = packed.reshape(b, -1, 3, 2, c // 2).transpose(2, 0, 3, 1, 4)
        if wrong == "key and value swapped":
            k, v = v, k
        scale = 1.0 if wrong == "softmax not scaled" else (c // 2) ** -0.5
        a = jax.nn.softmax(q @ k.mT * scale) @ v
        tokens = h.reshape(b, -1, c) + linen.Dense(c, name="proj")(a.swapaxes(1, 2).reshape(b, -1, c))
        inner = jax.nn.gelu(linen.Dense(16)(tokens), approximate=wrong == "GELU by tanh")
        tokens = linen.Dense(8)(inner) + (0 if wrong == "residual left out" else tokens)
        return linen.Conv(3, (3, 3), padding=ONE)(tokens.reshape(b, height, width, c))


ATTENTIVE = """
    epsilon; epsilon; norm1
    SAME padding; padding; conv
    GELU by tanh; activation; fc2
    SiLU left out; activation_missing; conv
    time without SiLU; activation_missing; time
    four groups; groups; norm2
    key and value swapped; qkv_order; proj
    softmax not scaled; attention_scale; proj
    residual left out; residual_missing|term_missing; out
"""


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(i, o, 1, stride) if i != o else nn.Identity()

    def forward(self, x):
        h = self.bn2(self.conv2(F.gelu(self.bn1(self.conv1(x)))))
        return F.silu(h + self.shortcut(x))


class Residual(nn.Module):
    """A residual network with BatchNorm, a pooled image and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block1, self.block2 = Block(6, 6, 1), Block(6, 12, 2)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        h = self.block2(self.block1(F.silu(self.stem(x))))
        return self.head(h.mean((2, 3)))


class BlockPort(linen.Module):
    width: int
    stride: int
    wrong: str = ""

    def setup(self):
        wrong, width = self.wrong, self.width
        padding = "SAME" if wrong == "SAME padding" and self.stride == 2 else ONE
        self.conv1 = linen.Conv(width, (3, 3), strides=self.stride, padding=padding, use_bias=False)
        epsilon = 1e-3 if wrong == "epsilon" else 1e-5
        self.bn1 = linen.BatchNorm(use_running_average=True, epsilon=epsilon, momentum=0.9)
        self.bn2 = linen.BatchNorm(use_running_average=True, epsilon=1e-5, momentum=0.9)
        self.conv2 = linen.Conv(width, (3, 3), padding=ONE, use_bias=False)
        self.shortcut = linen.Conv(width, (1, 1), strides=self.stride) if self.stride == 2 else lambda x: x

    def __call__(self, x):
        wrong = self.wrong
        h = jax.nn.gelu(self.bn1(self.conv1(x)), approximate=wrong == "GELU by tanh")
        h = self.bn2(self.conv2(h))
        shortcut = self.shortcut(x)
        if wrong == "SiLU before the sum":
            return jax.nn.silu(h) + shortcut
        total = h if wrong == "shortcut left out" and self.stride == 1 else h + shortcut
        return total if wrong == "SiLU left out" else jax.nn.silu(total)


class ResidualPort(linen.Module):
    wrong: str = ""

    def setup(self):
        first = self.wrong if self.wrong in ("epsilon", "SiLU left out", "shortcut left out") else ""
        self.stem = linen.Conv(6, (3, 3), padding="CIRCULAR" if self.wrong == "circular padding" else ONE)
        self.block1, self.block2 = BlockPort(6, 1, first), BlockPort(12, 2, "" if first else self.wrong)
        self.head = linen.Dense(5)

    def __call__(self, x):
        h = self.block2(self.block1(jax.nn.silu(self.stem(x))))
        return self.head(h.max((1, 2)) if self.wrong == "maximum of the pixels" else h.mean((1, 2)))


RESIDUAL = """
    epsilon; epsilon; block1.bn1
    SAME padding; padding; block2.conv1
    circular padding; padding_mode|padding; stem
    GELU by tanh; activation; block2.conv2
    SiLU left out; activation_missing|layer_missing; block1|block2.conv1|block2
    SiLU before the sum; activation_order|expression; block2|head
    shortcut left out; residual_missing; block1|block2.conv1|block2
    maximum of the pixels; pooling; head
"""
NETWORKS = {"attentive": (Attentive, AttentivePort), "residual": (Residual, ResidualPort)}
FAULTS = [*faults_of("attentive", ATTENTIVE), *faults_of("residual", RESIDUAL)]


def build(network: str, wrong: str = ""):
    """A torch network, its port without variables, and inputs in PyTorch's layout."""
    theirs, ours = NETWORKS[network]
    torch.manual_seed(0)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    return scrambled(theirs()), ours(wrong), (x, np.array([3, 700])) if network == "attentive" else (x,)
