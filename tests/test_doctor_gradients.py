"""The doctor compares gradients where outputs agree, and names where one is stopped or has another rule."""

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from jax_ddpm.doctor import compare
from tests.doctor_findings import random


class Block(nn.Module):
    def __init__(self, cut=""):
        super().__init__()
        self.cut = cut
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        h = self.second(F.silu(self.first(x)))
        return h.detach() + x if self.cut == "theirs" else h + x


class Network(nn.Module):
    def __init__(self, cut=""):
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(6, 6), Block(cut), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.block(self.stem(x)))


@jax.custom_jvp
def straight(x):
    return jax.nn.silu(x)


@straight.defjvp
def straight_rule(primals, tangents):
    return straight(*primals), tangents[0]


def doubled(x):
    return 2 * x - jax.lax.stop_gradient(x)


class BlockPort(nnx.Module):
    def __init__(self, cut=""):
        self.cut = cut
        self.first, self.second = (nnx.Linear(6, 6, rngs=nnx.Rngs(k)) for k in (0, 1))

    def __call__(self, x):
        stop = jax.lax.stop_gradient
        h = self.first(stop(x) if self.cut == "branch input" else x)
        h = straight(h) if self.cut == "rule" else jax.nn.silu(h)
        h = self.second(stop(h) if self.cut == "inside" else h)
        if self.cut == "branch":
            h = stop(h)
        return h + (stop(x) if self.cut == "residual" else x)


class NetworkPort(nnx.Module):
    def __init__(self, cut=""):
        self.cut = cut
        self.stem, self.head = nnx.Linear(6, 6, rngs=nnx.Rngs(2)), nnx.Linear(6, 2, rngs=nnx.Rngs(3))
        self.block = BlockPort(cut)

    def __call__(self, x):
        h = self.block(self.stem(x))
        h = jax.lax.stop_gradient(h) if self.cut == "network" else h
        return self.head(doubled(h) if self.cut == "factor" else h)


CUTS = {
    "branch": ("block", "stop_gradient", "behind block.second"),
    "branch input": ("block", "stop_gradient", "before block.first"),
    "inside": ("block", "stop_gradient", "behind block.first"),
    "residual": ("block", "stop_gradient", "other paths are stopped"),
    "network": ("", "stop_gradient", ""),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_stopped_gradient(cut):
    result = compare(Network(), NetworkPort(cut), random(3, 6))
    place, name, words = CUTS[cut]
    assert result.finding.place == "gradient" and result.finding.pair.theirs.path == place
    assert result.finding.cause.name == name and words in result.sentence


def test_a_gradient_that_theirs_stops():
    result = compare(Network("theirs"), NetworkPort(), random(3, 6))
    assert result.finding.pair.theirs.path == "block" and result.finding.cause.name == "detach_missing"


def test_another_rule():
    result = compare(Network(), NetworkPort("rule"), random(3, 6))
    assert result.finding.place == "gradient" and result.finding.pair.theirs.path == "block"


def test_right_gradients():
    assert compare(Network(), NetworkPort(), random(3, 6)).equal


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return F.silu(x) * self.factor


class GatePort(nnx.Module):
    def __init__(self, wrong):
        self.factor, self.wrong = nnx.Param(jnp.ones(6)), wrong

    def __call__(self, x):
        if self.wrong == "factor":
            return doubled(jax.nn.silu(x) * self.factor[...])
        factor = jax.lax.stop_gradient(self.factor[...]) if self.wrong == "parameter" else self.factor[...]
        return (straight(x) if self.wrong == "rule" else jax.nn.silu(x)) * factor


@pytest.mark.parametrize(
    "wrong, name", [("factor", "gradient_scaled"), ("parameter", "stop_gradient"), ("rule", "gradient_rule")]
)
def test_of_one_layer(wrong, name):
    theirs, ours = nn.Sequential(Gate()), nnx.Sequential(GatePort(wrong))
    cause = compare(theirs, ours, random(3, 6), table={"0": "layers.0"}).finding.cause
    assert cause.name == name


class Limited(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.value, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.value(x).clamp(-0.3, 0.3))


class LimitedPort(nnx.Module):
    """An attribute has the name `value`, which Flax's variables have, too."""

    def __init__(self, wrong=""):
        self.wrong = wrong
        self.value, self.out = nnx.Linear(6, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 2, rngs=nnx.Rngs(1))
        if wrong == "no parameter":
            self.value.bias = nnx.Variable(jnp.zeros(6))

    def __call__(self, x):
        h = self.value(x)
        limited = jnp.clip(h, -0.3, 0.3)
        if self.wrong == "straight-through":
            limited = h + jax.lax.stop_gradient(limited - h)
        if self.wrong == "not finite":
            limited = limited + 0 * jnp.where(h > 1e9, jnp.sqrt(0 * h), 0.0)
        return self.out(-limited + 2 * jax.lax.stop_gradient(limited) if self.wrong == "sign" else limited)


LIMITED = {
    "": (True, "", "", ""),
    "straight-through": (False, "gradient_clipped", "", "theirs passes no gradient because it clips"),
    "not finite": (False, "gradient_not_finite", "", "not finite"),
    "sign": (False, "gradient_scaled", "", "the opposite sign"),
    "no parameter": (False, "frozen_parameter", "value", "value.bias is no parameter"),
}


@pytest.mark.parametrize("wrong", LIMITED)
def test_between_modules(wrong):
    result = compare(Limited(), LimitedPort(wrong), random(8, 6))
    equal, name, place, words = LIMITED[wrong]
    assert result.equal == equal and words in result.sentence
    assert equal or (result.finding.cause.name, result.finding.pair.theirs.path) == (name, place)
