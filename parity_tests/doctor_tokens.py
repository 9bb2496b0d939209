"""Small networks with a time or with attention, and their ports with one fault.

A port takes the name of its fault, "" for none.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from jax_ddpm import layers, ops
from parity_tests.doctor_weights import copy_weights, kernel, rngs


class Timed(nn.Module):
    """A residual block that is told the time."""

    def __init__(self):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(16, 32), nn.Linear(32, 32)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.time1, self.time2 = nn.Linear(32, 8), nn.Linear(32, 16)
        self.norm1, self.norm2 = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(8, dtype=x.dtype) / 8)
        phase = t[:, None].to(x.dtype) * frequencies
        time = self.linear2(F.silu(self.linear1(torch.cat([phase.sin(), phase.cos()], -1))))
        h = self.stem(x)
        r = self.conv1(F.silu(h)) + self.time1(F.silu(time))[:, :, None, None]
        h = h + F.silu(self.norm1(r))
        scale, shift = self.time2(F.silu(time))[:, :, None, None].chunk(2, 1)
        h = h + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.out(h)


class TimedPort(nnx.Module):
    """With the layers of jax_ddpm."""

    def __init__(self, wrong=""):
        self.wrong = wrong
        self.linear1, self.linear2 = layers.Linear(16, 32), layers.Linear(32, 32)
        self.stem = layers.Conv(3, 8, 3)
        self.conv1, self.conv2 = layers.Conv(8, 8, 3), layers.Conv(8, 8, 3)
        self.time1, self.time2 = layers.Linear(32, 8), layers.Linear(32, 16)
        epsilon = 1e-3 if wrong == "epsilon 1e-3" else 1e-5
        self.norm1 = layers.GroupNorm(4 if wrong == "groups of norm1" else 2, 8, epsilon)
        self.norm2 = layers.GroupNorm(2, 8)
        self.out = layers.Conv(8, 3, 3)

    def after_copy(self):
        if self.wrong == "square weights not transposed":
            kernel(self.linear2, lambda k: k.T)
        if self.wrong == "bias not copied":
            self.conv1.bias.set_value(jnp.zeros(8))

    def __call__(self, x, t):
        wrong, dtype = self.wrong, x.dtype
        t = {"t off by one": t + 1, "t over 1000": t / 1000}.get(wrong, t)
        count = 7 if wrong == "frequencies over n - 1" else 8
        period = 1000.0 if wrong == "period 1000" else 10000.0
        frequencies = jnp.exp(-jnp.log(jnp.asarray(period, dtype)) * jnp.arange(8, dtype=dtype) / count)
        if wrong == "two pi":
            frequencies = 2 * np.pi * frequencies
        phase = t[:, None].astype(dtype) * frequencies
        parts = [jnp.sin(phase), jnp.cos(phase)]
        if wrong == "cosines first":
            parts = parts[::-1]
        embedding = jnp.concatenate(parts, -1)
        if wrong == "sines and cosines interleaved":
            embedding = jnp.stack(parts, -1).reshape(len(t), -1)
        time = self.linear2(ops.silu(self.linear1(embedding)))
        told = time if wrong == "time not activated" else ops.silu(time)
        h = self.stem(x)
        r = self.conv1(ops.silu(h))
        added = self.time1(told)[:, None, None]
        if wrong == "time added after the norm":
            r = ops.silu(self.norm1(r) + added)
        elif wrong == "time added after the activation":
            r = ops.silu(self.norm1(r)) + added
        elif wrong == "time multiplied":
            r = ops.silu(self.norm1(r * added))
        elif wrong == "time left out":
            r = ops.silu(self.norm1(r))
        elif wrong == "time added twice":
            r = ops.silu(self.norm1(r + 2 * added))
        else:
            r = ops.silu(self.norm1(r + added))
        h = h + r
        scale, shift = jnp.split(self.time2(told)[:, None, None], 2, -1)
        if wrong == "scale and shift swapped":
            scale, shift = shift, scale
        if wrong == "scale without one":
            scale = scale - 1
        h = h + self.conv2(ops.silu(self.norm2(h) * (1 + scale) + shift))
        if wrong == "gradient stopped":
            h = h - self.conv2(jnp.zeros_like(h)) + jax.lax.stop_gradient(self.conv2(jnp.zeros_like(h)))
        return self.out(h)


class Tokens(nn.Module):
    """A vision transformer of one block."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.label = nn.Embedding(5, 16)
        self.position = nn.Parameter(torch.zeros(1, 5, 16))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x, y):
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.label(y)[:, None], h], 1) + self.position
        b, n, c = h.shape
        q, k, v = self.qkv(self.norm1(h)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) / math.sqrt(c // 4)).softmax(-1) @ v
        h = h + self.proj(a.transpose(1, 2).reshape(b, n, c))
        h = h + self.fc2(F.gelu(self.fc1(self.norm2(h))))
        return self.head(self.norm3(h)[:, 0])


class TokensPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.patch = nnx.Conv(3, 16, (4, 4), strides=4, padding="VALID", rngs=rngs())
        self.label = nnx.Embed(5, 16, rngs=rngs())
        self.position = nnx.Param(jnp.zeros((1, 5, 16)))
        epsilon = 1e-6 if wrong == "LayerNorm epsilon" else 1e-5
        self.norm1 = nnx.LayerNorm(16, epsilon=epsilon, use_fast_variance=False, rngs=rngs())
        self.norm2, self.norm3 = (
            nnx.LayerNorm(16, epsilon=1e-5, use_fast_variance=False, rngs=rngs()) for _ in range(2)
        )
        self.qkv, self.proj = nnx.Linear(16, 48, rngs=rngs()), nnx.Linear(16, 16, rngs=rngs())
        self.fc1, self.fc2 = nnx.Linear(16, 32, rngs=rngs()), nnx.Linear(32, 16, rngs=rngs())
        self.head = nnx.Linear(16, 10, rngs=rngs())

    def after_copy(self):
        if self.wrong == "square projection not transposed":
            kernel(self.proj, lambda k: k.T)
        if self.wrong == "embedding's rows shifted":
            table = np.asarray(self.label.embedding.get_value())
            self.label.embedding.set_value(jnp.asarray(np.roll(table, 1, 0)))

    def __call__(self, x, y):
        wrong = self.wrong
        h = self.patch(x)
        h = h.swapaxes(1, 2) if wrong == "patches by columns" else h
        h = h.reshape(len(x), -1, 16)
        label = self.label(y)[:, None]
        if wrong == "embedding scaled":
            label = label * 4.0
        h = jnp.concatenate([h, label] if wrong == "label last" else [label, h], 1)
        h = h if wrong == "positions missing" else h + self.position[...]
        b, n, c = h.shape
        packed = self.qkv(h if wrong == "norm missing" else self.norm1(h))
        heads = 2 if wrong == "two heads" else 4
        if wrong == "packed by heads":
            q, k, v = packed.reshape(b, n, heads, 3, c // heads).transpose(3, 0, 2, 1, 4)
        elif wrong == "heads last":
            q, k, v = packed.reshape(b, n, 3, c // heads, heads).transpose(2, 0, 4, 1, 3)
        else:
            q, k, v = packed.reshape(b, n, 3, heads, c // heads).transpose(2, 0, 3, 1, 4)
        if wrong == "key and value swapped":
            k, v = v, k
        scale = {"softmax not scaled": 1.0, "softmax scaled by the width": c**-0.5}.get(wrong, (c // heads) ** -0.5)
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * scale
        if wrong == "causal mask":
            scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-2 if wrong == "softmax over queries" else -1)
        a = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
        a = a if wrong == "heads not moved back" else a.transpose(0, 2, 1, 3)
        h = h + self.proj(a.reshape(b, n, c))
        if wrong == "norm after the residual":
            h = self.norm2(h + self.fc2(jax.nn.gelu(self.fc1(h), approximate=False)))
        else:
            h = h + self.fc2(jax.nn.gelu(self.fc1(self.norm2(h)), approximate=wrong == "GELU by tanh in the MLP"))
        if wrong == "mean for the first token":
            return self.head(self.norm3(h).mean(1))
        return self.head(self.norm3(h)[:, 1 if wrong == "second token" else 0])


class Attended(nn.Module):
    """torch's own multi-head attention."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mha = nn.MultiheadAttention(16, 4, batch_first=True)
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        h = self.norm(x)
        return self.fc(x + self.mha(h, h, h, need_weights=False)[0])


class AttendedPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, use_fast_variance=False, rngs=rngs())
        heads = 2 if wrong == "two heads" else 4
        self.mha = nnx.MultiHeadAttention(heads, 16, decode=False, rngs=rngs())
        self.fc = nnx.Linear(16, 16, rngs=rngs())

    def fill(self, theirs):
        copy_weights(theirs, self)
        heads = self.mha.num_heads
        weight, bias = theirs.mha.in_proj_weight.detach().numpy(), theirs.mha.in_proj_bias.detach().numpy()
        names = ["query", "key", "value"]
        if self.wrong == "query and key swapped":
            names = ["key", "query", "value"]
        if self.wrong == "key and value swapped":
            names = ["query", "value", "key"]
        for number, name in enumerate(names):
            part, layer = slice(16 * number, 16 * number + 16), getattr(self.mha, name)
            w = weight[part].T
            if self.wrong == "heads split the other way":
                w = w.reshape(16, 4, 4).swapaxes(1, 2)
            layer.kernel.set_value(jnp.asarray(w.reshape(16, heads, 16 // heads)))
            layer.bias.set_value(jnp.asarray(bias[part].reshape(heads, 16 // heads)))
        w = theirs.mha.out_proj.weight.detach().numpy().T
        w = w.T if self.wrong == "output projection not transposed" else w
        self.mha.out.kernel.set_value(jnp.asarray(w.reshape(heads, 16 // heads, 16)))
        self.mha.out.bias.set_value(jnp.asarray(theirs.mha.out_proj.bias.detach().numpy()))

    def __call__(self, x):
        h = self.norm(x)
        return self.fc(x + self.mha(h))
