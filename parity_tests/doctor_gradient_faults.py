"""Ports whose outputs are right and whose gradients are not, and right ones with rules of their own.

Run as `python -m parity_tests.doctor_gradient_faults` for the table.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from jax_ddpm.doctor import compare
from parity_tests.doctor_faults import Fault, faults_of, judged, table
from parity_tests.doctor_weights import copy_weights, rngs, scrambled

stop = jax.lax.stop_gradient


class Block(nn.Module):
    def __init__(self, detach=""):
        super().__init__()
        self.detach = detach
        self.norm, self.time = nn.GroupNorm(2, 8), nn.Linear(6, 8)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm(x))) + self.time(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(h))
        return x + (h.detach() if self.detach == "branch" else h)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        b, c, height, width = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, 2)
        a = (q @ k.transpose(1, 2) * c**-0.5).softmax(-1) @ v
        return x + self.proj(a).transpose(1, 2).reshape(b, c, height, width)


class Network(nn.Module):
    """A UNet in small: the time, two blocks, attention, a skip connection, and a clipped array."""

    def __init__(self, detach=""):
        super().__init__()
        self.detach = detach
        self.embed1, self.embed2 = nn.Linear(6, 6), nn.Linear(6, 6)
        self.stem, self.block1, self.block2 = nn.Conv2d(3, 8, 3, padding=1), Block(detach), Block()
        self.attention, self.fuse, self.out = Attention(), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 3, 1)
        frequencies = torch.tensor([1.0, 0.3, 0.1])
        self.register_buffer("frequencies", frequencies)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x, t):
        phase = t[:, None].to(x.dtype) * self.frequencies
        time = self.embed2(F.silu(self.embed1(torch.cat([phase.sin(), phase.cos()], 1))))
        h = skip = self.stem(x)
        h = self.block1(h, time)
        limited = h.clamp(-1, 1)
        h = self.attention(h + (limited - h).detach() if self.detach == "straight-through" else limited)
        h = self.fuse(torch.cat([self.block2(h, time), skip], 1))
        return self.out(self.scale * F.silu(h))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def with_factor(x, factor):
    return x


with_factor.defvjp(lambda x, factor: (x, None), lambda factor, _, g: (factor * g,))


@jax.custom_jvp
def wrong_silu(x):
    return jax.nn.silu(x)


wrong_silu.defjvp(lambda p, t: (wrong_silu(*p), jax.nn.sigmoid(p[0]) * t[0]))


@jax.custom_jvp
def right_silu(x):
    return jax.nn.silu(x)


@right_silu.defjvp
def right_rule(primals, tangents):
    s = jax.nn.sigmoid(primals[0])
    return right_silu(*primals), (s + primals[0] * s * (1 - s)) * tangents[0]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def group_norm(x, scale, bias, wrong):
    return normalised(x) * scale + bias


def grouped(x):
    return x.reshape(len(x), -1, 2, x.shape[-1] // 2)


def normalised(x):
    g = grouped(x)
    return ((g - g.mean((1, 3), keepdims=True)) / jnp.sqrt(g.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)


def backward(wrong, saved, g):
    """(h - mean(h) - n mean(h n)) / std with h = g scale, or with a fault."""
    x, scale = saved
    n, h = grouped(normalised(x)), grouped(g * scale)
    average = jnp.sum if wrong == "sum for mean in a norm" else jnp.mean
    mean, slope = average(h, (1, 3), keepdims=True), n * average(h * n, (1, 3), keepdims=True)
    if wrong == "no gradient through the variance":
        slope = 0.0
    if wrong == "no gradient through the mean":
        mean = 0.0
    dx = (h - mean - slope) / jnp.sqrt(grouped(x).var((1, 3), keepdims=True) + 1e-5)
    scale_gradient = (g * normalised(x)).sum((0, 1, 2))
    if wrong == "mean for sum in a scale's gradient":
        scale_gradient = scale_gradient / len(x)
    return dx.reshape(x.shape), scale_gradient, g.sum((0, 1, 2))


group_norm.defvjp(lambda x, scale, bias, wrong: (group_norm(x, scale, bias, wrong), (x, scale)), backward)


class OwnNorm(nnx.Module):
    """GroupNorm with two groups and a rule of its own."""

    def __init__(self, wrong):
        self.wrong = wrong
        self.scale, self.bias = nnx.Param(jnp.ones(8)), nnx.Param(jnp.zeros(8))

    def __call__(self, x):
        return group_norm(x, self.scale[...], self.bias[...], self.wrong)


class DoubledConv(nnx.Conv):
    """The kernel's gradient counts twice."""

    def __call__(self, x):
        kernel = self.kernel[...]
        self.kernel.set_value(2 * kernel - stop(kernel))
        y = super().__call__(x)
        self.kernel.set_value(kernel)
        return y


NORM_FAULTS = (
    *("sum for mean in a norm", "no gradient through the variance", "no gradient through the mean"),
    *("mean for sum in a scale's gradient", "right rule of a norm"),
)


def conv(i, o, k, kind=nnx.Conv):
    return kind(i, o, (k, k), padding=((k // 2,) * 2,) * 2, rngs=rngs())


class BlockPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.norm = nnx.GroupNorm(8, num_groups=2, epsilon=1e-5, use_fast_variance=False, rngs=rngs())
        if wrong in NORM_FAULTS:
            self.norm = OwnNorm(wrong)
        self.time = nnx.Linear(6, 8, rngs=rngs())
        self.conv1 = conv(8, 8, 3)
        self.conv2 = conv(8, 8, 3, DoubledConv if wrong == "kernel's gradient doubled" else nnx.Conv)
        if wrong == "frozen bias":
            self.conv1.bias = nnx.Variable(self.conv1.bias[...])

    def __call__(self, x, time):
        wrong = self.wrong
        time = self.time(jax.nn.silu(with_factor(time, -1.0) if wrong == "sign of the time" else time))
        silu = {"wrong rule of SiLU": wrong_silu, "right rule of SiLU": right_silu}.get(wrong, jax.nn.silu)
        h = self.conv1(silu(self.norm(x))) + time[:, None, None]
        h = self.conv2(jax.nn.silu(h))
        if wrong == "branch stopped":
            h = stop(h)
        if wrong == "branch scaled":
            h = with_factor(h, 0.5)
        return (stop(x) if wrong == "residual stopped" else x) + h


class AttentionPort(nnx.Module):
    def __init__(self, wrong):
        self.wrong = wrong
        self.qkv, self.proj = nnx.Linear(8, 24, rngs=rngs()), nnx.Linear(8, 8, rngs=rngs())

    def __call__(self, x):
        b, c = len(x), x.shape[-1]
        q, k, v = jnp.split(self.qkv(x.reshape(b, -1, c)), 3, -1)
        weights = jax.nn.softmax(q @ k.mT * c**-0.5)
        a = (stop(weights) if self.wrong == "attention's weights stopped" else weights) @ v
        return x + self.proj(a).reshape(x.shape)


class NetworkPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.embed1, self.embed2 = nnx.Linear(6, 6, rngs=rngs()), nnx.Linear(6, 6, rngs=rngs())
        self.stem, self.block1, self.block2 = conv(3, 8, 3), BlockPort(wrong), BlockPort()
        self.attention, self.fuse, self.out = AttentionPort(wrong), conv(16, 8, 1), conv(8, 3, 1)
        kind = nnx.Param if wrong == "frequencies trained" else nnx.Variable
        self.frequencies = kind(jnp.array([1.0, 0.3, 0.1]))
        self.scale = nnx.Param(jnp.ones(1))

    def fill(self, theirs):
        copy_weights(theirs, self)
        self.scale.set_value(jnp.asarray(theirs.scale.detach().numpy()))
        self.frequencies.set_value(jnp.asarray(theirs.frequencies.numpy()))

    def __call__(self, x, t):
        wrong = self.wrong
        phase = t[:, None].astype(x.dtype) * self.frequencies[...]
        time = self.embed2(jax.nn.silu(self.embed1(jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], 1))))
        if wrong == "time detached":
            time = stop(time)
        h = skip = self.stem(x)
        block1 = jax.checkpoint(self.block1) if wrong == "right with jax.checkpoint" else self.block1
        h = block1(h, time)
        limited = jnp.clip(h, -1, 1)
        h = self.attention(h + stop(limited - h) if "straight-through" in wrong else limited)
        h = self.block2(h, time)
        h = self.fuse(jnp.concatenate([h, stop(skip) if wrong == "skip stopped" else skip], -1))
        scale = stop(self.scale[...]) if wrong == "frozen scale" else self.scale[...]
        if wrong == "not finite":
            h = h + 0 * jnp.where(h > 1e9, jnp.sqrt(h * 0), 0.0)
        y = self.out(scale * jax.nn.silu(h))
        return with_factor(y, 2.0) if wrong == "all doubled" else y


class Tied(nn.Module):
    """The table of tokens is the head's weight, too."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(7, 5), nn.Linear(5, 5)

    def forward(self, tokens):
        return F.linear(F.silu(self.mix(self.embed(tokens))), self.embed.weight)


class UntiedPort(nnx.Module):
    """The head has a copy of the table."""

    def __init__(self):
        self.embed, self.mix = nnx.Embed(7, 5, rngs=rngs()), nnx.Linear(5, 5, rngs=rngs())
        self.head = nnx.Linear(5, 7, use_bias=False, rngs=rngs())

    def fill(self, theirs):
        copy_weights(theirs, self)
        self.head.kernel.set_value(jnp.asarray(theirs.embed.weight.detach().numpy().T))

    def __call__(self, tokens):
        return self.head(jax.nn.silu(self.mix(self.embed(tokens))))


class TiedPort(nnx.Module):
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.embed, self.mix = nnx.Embed(7, 5, rngs=rngs()), nnx.Linear(5, 5, rngs=rngs())

    def fill(self, theirs):
        copy_weights(theirs, self)

    def __call__(self, tokens):
        h = jax.nn.silu(self.mix(self.embed(tokens)))
        table = self.embed.embedding[...]
        return h @ (stop(table) if self.wrong == "head's weight stopped" else table).T


FAULTS = [
    *faults_of(
        "network",
        """
        branch stopped; stop_gradient; block1
        residual stopped; stop_gradient; block1
        branch scaled; gradient_scaled; block1
        sign of the time; gradient_scaled; block1
        kernel's gradient doubled; gradient_scaled; block1.conv2
        frozen bias; frozen_parameter; block1.conv1
        wrong rule of SiLU; gradient_rule; block1
        sum for mean in a norm; norm_gradient; block1.norm
        no gradient through the variance; norm_gradient; block1.norm
        no gradient through the mean; norm_gradient; block1.norm
        mean for sum in a scale's gradient; gradient_scaled; block1.norm
        attention's weights stopped; stop_gradient; attention
        straight-through for clipped; gradient_clipped;
        time detached; stop_gradient;
        skip stopped; stop_gradient;
        frozen scale; stop_gradient;
        frequencies trained; trained_buffer;
        not finite; gradient_not_finite;
        all doubled; gradient_scaled;
        """,
    ),
    Fault("straight-through", "", "gradient_clipped", ""),
    Fault("detaching", "", "detach_missing", "block1"),
    *faults_of("tied", "head's weight stopped; stop_gradient|gradient_rule;"),
    *faults_of("tied", "head's weight a copy; untied;"),
]
RIGHT = [
    *(("network", wrong) for wrong in ("", "right rule of SiLU", "right rule of a norm", "right with jax.checkpoint")),
    *(("straight-through", "straight-through"), ("detaching", "branch stopped"), ("tied", "")),
]
NETWORKS = {
    "network": Network,
    "straight-through": lambda: Network("straight-through"),
    "detaching": lambda: Network("branch"),
    "tied": Tied,
}


def build(network: str, wrong: str = ""):
    """A torch network, its port with a fault in its gradients, and inputs in PyTorch's layout."""
    torch.manual_seed(0)
    theirs = scrambled(NETWORKS[network]())
    ours = (TiedPort if network == "tied" else NetworkPort)(wrong) if "copy" not in wrong else UntiedPort()
    ours.fill(theirs)
    if network == "tied":
        return theirs, ours, (np.array([[1, 3, 2], [0, 6, 3]]),)
    return theirs, ours, (np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32), np.array([3, 700]))


def examine(fault: Fault):
    return judged(fault, compare(*build(fault.network, fault.wrong)))


if __name__ == "__main__":
    for network, wrong in RIGHT:
        result = compare(*build(network, wrong))
        print(f"{'right' if result.equal else 'WRONG'}  {network}: {wrong or 'right'}  {result.sentence}")
    table([f for f in FAULTS if not sys.argv[1:] or any(word in f.name for word in sys.argv[1:])], examine)
