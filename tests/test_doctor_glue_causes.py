"""The doctor names what differs between modules, where no module stands."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jax_ddpm.doctor.causes import explain
from tests.doctor_findings import glue, random

X, TIME = random(2, 4, 6, 6, seed=1), random(2, 4, seed=2)
A, B, C = (random(2, 4, 6, 6, seed=seed) for seed in (3, 4, 5))
BEFORE = [("down.norm", X, A), ("down.conv", A, B), ("time.linear", random(2, 3), TIME), ("mid.conv", B, C)]
SPREAD = TIME[:, :, None, None]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return F.gelu(torch.from_numpy(x)).numpy()


def resized(x, **settings):
    return F.interpolate(torch.from_numpy(x), **settings).numpy()


def pooled(function, x):
    return function(torch.from_numpy(x), 2).numpy()


def cat(*arrays):
    return np.concatenate(arrays, 1)


GLUE = {
    "residual_missing-1": (C + X, C),
    "residual_missing-2": (silu(C + X), silu(C)),
    "residual_doubled": (C + X, C + 2 * X),
    "residual_subtracted": (C + X, C - X),
    "residual_scaled": (C + X, 0.7 * C + X),
    "scale": (C + X, (C + X) / np.sqrt(2)),
    "residual_extra": (C, C + X),
    "term_missing": (C + SPREAD, C),
    "term_doubled": (C + SPREAD, C + 2 * SPREAD),
    "term_extra": (C, C + SPREAD),
    "activation_order-1": (silu(C + SPREAD), silu(C) + SPREAD),
    "activation_order-2": (silu(C) + SPREAD, silu(C + SPREAD)),
    "activation_order-3": (C + silu(SPREAD), silu(C) + SPREAD),
    "activation-1": (silu(C), gelu(C)),
    "activation-2": (silu(C + SPREAD), np.maximum(C + SPREAD, 0)),
    "activation-3": (np.maximum(C, 0), np.where(C > 0, C, 0.17 * C)),
    "activation_missing": (silu(C), C),
    "activation_extra": (C + X, silu(C + X)),
    "activation_doubled": (silu(C), silu(silu(C))),
    "concatenation_order-1": (cat(C, B), cat(B, C)),
    "concatenation_order-2": (cat(C, B, X), cat(C, X, B)),
    "concatenation_order-3": (cat(C, B), cat(C, B).reshape(2, 2, 4, 6, 6).swapaxes(1, 2).reshape(2, 8, 6, 6)),
    "another_tensor-1": (cat(C, B), cat(C, X)),
    "another_tensor-2": (C, A),
    "another_tensor-3": (C + X, C + A),
    "layer_missing-1": (C, B),
    "layer_missing-2": (cat(C, B), cat(C, A)),
    "height_width_swapped": (C, C.swapaxes(2, 3)),
    "image_flipped": (C, C[..., ::-1]),
    "channels_permuted": (C, C.reshape(2, 2, 2, 6, 6).swapaxes(1, 2).reshape(C.shape)),
    "axes_order": (C, C.transpose(0, 2, 3, 1).reshape(C.shape)),
    "input_range": (2 * X - 1, X),
    "interpolation-1": (resized(C, scale_factor=2), resized(C, scale_factor=2, mode="bilinear")),
    "interpolation-2": (resized(C, scale_factor=2), np.tile(C, (1, 1, 2, 2))),
    "interpolation-3": (resized(silu(C), scale_factor=2), resized(silu(C), scale_factor=2, mode="bilinear")),
    "pooling-1": (pooled(F.avg_pool2d, C), pooled(F.max_pool2d, C)),
    "pooling-2": (pooled(F.max_pool2d, np.maximum(C + X, 0)), pooled(F.avg_pool2d, np.maximum(C + X, 0))),
    "interpolation-4": (resized(silu(C + X), scale_factor=2), resized(silu(C + X), scale_factor=2, mode="bilinear")),
    "flatten_order": (C.reshape(2, -1), C.transpose(0, 2, 3, 1).reshape(2, -1)),
    "padding-1": (np.pad(C + SPREAD, ((0, 0), (0, 0), (0, 1), (0, 1))), C + SPREAD),
    "padding-2": (C, C[:, :, :-1, :-1]),
    "resampling_missing": (resized(C, scale_factor=2), C),
    "resampling_extra": (C, F.avg_pool2d(torch.from_numpy(C), 2).numpy()),
    "image_shifted": (C, np.roll(C, 1, (2, 3))),
    "expression": (C + X, B + A),
}


@pytest.mark.parametrize("name", GLUE)
def test_between_modules(name):
    theirs, ours = GLUE[name]
    cause = explain(glue(BEFORE, theirs, ours, outer=[X]))
    assert cause.name == name.partition("-")[0]
    assert re.match(r"In the code (between [\w.]+ and|before) last \(Conv2d, ours Conv\): ", cause.sentence)
    assert cause.residual < 1e-6


@pytest.mark.parametrize("name", GLUE)
def test_right_glue_has_no_cause(name):
    theirs, _ = GLUE[name]
    assert explain(glue(BEFORE, theirs, theirs + 1e-15, outer=[X])) is None


def test_sentence_of_a_concatenation():
    cause = explain(glue(BEFORE, cat(C, B), cat(B, C), outer=[X]))
    assert cause.sentence == (
        "In the code between mid.conv and last (Conv2d, ours Conv): ours concatenates [down.conv, mid.conv], theirs "
        "[mid.conv, down.conv]. Write jnp.concatenate([(output of mid.conv), (output of down.conv)], axis=-1)."
    )


def test_a_concatenation_to_which_the_time_is_added():
    time = random(2, 8)
    before = [*BEFORE, ("time.to_both", random(2, 3), time)]
    spread = time[:, :, None, None]
    cause = explain(glue(before, cat(C, B) + spread, cat(B, C) + spread, outer=[X]))
    assert cause.name == "concatenation_order" and "[mid.conv, down.conv]" in cause.sentence


def softmax(x, axis):
    return torch.from_numpy(x).softmax(axis).numpy()


def normal(x, axes, epsilon):
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + epsilon)


OPERATIONS = {
    "operation_missing-1": (F.normalize(torch.from_numpy(C)).numpy(), C),
    "operation_missing-2": (normal(C, (1, 2, 3), 1e-5), C),
    "operation": (softmax(C, 1), normal(C, (1,), 1e-5)),
    "softmax_axis": (softmax(C, 1), softmax(C, 2)),
    "axes": (normal(C, (1, 2, 3), 1e-5), normal(C, (2, 3), 1e-5)),
    "epsilon": (normal(C, (1,), 1e-5), normal(C, (1,), 1e-6)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_over_axes(name):
    theirs, ours = OPERATIONS[name]
    assert explain(glue(BEFORE, theirs, ours, outer=[X])).name == name.partition("-")[0]


PACKED = random(2, 8, 6, 6, seed=8)
FIRST, SECOND = np.split(PACKED, 2, axis=1)


@pytest.mark.parametrize(
    "name, theirs, ours",
    [
        ("halves_swapped", FIRST * gelu(SECOND), gelu(FIRST) * SECOND),
        ("halves_swapped", FIRST, SECOND),
        ("activation", FIRST * gelu(SECOND), FIRST * silu(SECOND)),
        ("factor_missing", FIRST * gelu(SECOND), FIRST),
    ],
)
def test_gated_halves(name, theirs, ours):
    before = [*BEFORE, ("ff.proj", X, PACKED)]
    assert explain(glue(before, theirs, ours, outer=[X])).name == name
    assert explain(glue(before, theirs, theirs + 1e-15, outer=[X])) is None


def modulated(h, scale, shift):
    return h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


MODULATIONS = {
    "scale_shift_swapped": lambda h, a, b: modulated(h, b, a),
    "scale_shift": lambda h, a, b: modulated(h, a - 1, b),
}


@pytest.mark.parametrize("name", MODULATIONS)
@pytest.mark.parametrize("outer", [lambda h: h, silu])
def test_scale_and_shift(name, outer):
    time = random(2, 8)
    halves = np.split(time, 2, axis=1)
    before = [*BEFORE, ("time.scale_shift", random(2, 3), time), ("mid.norm", C, A)]
    ours = MODULATIONS[name](A, *halves)
    assert explain(glue(before, outer(modulated(A, *halves)), outer(ours))).name == name


@pytest.mark.parametrize("outer", [lambda h: h, silu])
def test_scale_and_shift_of_two_layers(outer):
    scale, shift = random(2, 4, seed=6), random(2, 4, seed=7)
    before = [*BEFORE, ("to_scale", random(2, 3), scale), ("to_shift", random(2, 3), shift), ("mid.norm", C, A)]
    theirs, ours = outer(modulated(A, scale, shift)), outer(modulated(A, shift, scale))
    assert explain(glue(before, theirs, ours)).name == "scale_shift_swapped"


def attention(q, k, v, heads, scale=None, axis=-1, split="hd"):
    b, n, c = q.shape
    if split == "hd":
        q, k, v = (a.reshape(b, n, heads, -1).transpose(0, 2, 1, 3) for a in (q, k, v))
    else:
        q, k, v = (a.reshape(b, n, -1, heads).transpose(0, 3, 1, 2) for a in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * (scale or (c // heads) ** -0.5)
    weights = torch.from_numpy(scores).softmax(axis).numpy()
    return (weights @ v).transpose(0, 2, 1, 3).reshape(b, n, c)


ATTENTIONS = {
    "attention_scale-1": {"scale": 8**-0.5},
    "attention_scale-2": {"scale": 1.0},
    "attention_heads": {"heads": 4},
    "softmax_axis": {"axis": -2},
    "qkv_packing": {"split": "dh"},
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_by_functions(name):
    x = random(2, 9, 8)
    q, k, v = (random(2, 9, 8, seed=seed) for seed in (1, 2, 3))
    before = [("to_q", x, q), ("to_k", x, k), ("to_v", x, v)]
    ours = attention(q, k, v, **{"heads": 2, **ATTENTIONS[name]})
    assert explain(glue(before, attention(q, k, v, 2), ours)).name == name.partition("-")[0]


def test_keys_and_values_swapped():
    x = random(2, 9, 8)
    q, k, v = (random(2, 9, 8, seed=seed) for seed in (1, 2, 3))
    before = [("to_q", x, q), ("to_k", x, k), ("to_v", x, v)]
    assert explain(glue(before, attention(q, k, v, 2), attention(q, v, k, 2))).name == "qkv_order"


def test_packed_projection_split_another_way():
    x, qkv = random(2, 9, 8), random(2, 9, 24, seed=1)
    theirs = attention(*np.split(qkv, 3, -1), 2)
    grouped = qkv.reshape(2, 9, 2, 3, 4).transpose(3, 0, 1, 2, 4).reshape(3, 2, 9, 8)
    assert explain(glue([("qkv", x, qkv)], theirs, attention(*grouped, 2))).name == "qkv_packing"


def test_attention_over_an_image():
    x = random(2, 8, 3, 3)
    q, k, v = (random(2, 8, 3, 3, seed=seed) for seed in (1, 2, 3))

    def attended(**settings):
        tokens = (a.reshape(2, 8, 9).swapaxes(1, 2) for a in (q, k, v))
        return attention(*tokens, 1, **settings).swapaxes(1, 2).reshape(x.shape)

    before = [("q", x, q), ("k", x, k), ("v", x, v)]
    assert explain(glue(before, attended(), attended(scale=1.0))).name == "attention_scale"


def test_time_embedding_by_functions():
    t = np.array([3.0, 20.0, 700.0])
    phase = t[:, None] * 1e4 ** (-np.arange(4) / 4)
    theirs = np.concatenate([np.sin(phase), np.cos(phase)], 1)
    ours = np.concatenate([np.cos(phase), np.sin(phase)], 1)
    assert explain(glue([], theirs, ours, outer=[random(3, 1, 4, 4), t])).name == "embedding_order"
    theirs32 = theirs.astype(np.float32).astype(float)
    other = np.sin(t[:, None] * 1e4 ** (-np.arange(4) / 3)), np.cos(t[:, None] * 1e4 ** (-np.arange(4) / 3))
    ours = np.concatenate(other, 1).astype(np.float32).astype(float)
    assert explain(glue([], theirs32, ours, outer=[random(3, 1, 4, 4), t])).name == "frequency_exponent"


def test_tokens_of_an_image():
    h = random(2, 4, 3, 5)
    theirs = h.reshape(2, 4, 15).swapaxes(1, 2)
    before = [("patches", random(2, 1, 6, 10), h)]
    columns = h.swapaxes(2, 3).reshape(2, 4, 15).swapaxes(1, 2)
    assert explain(glue(before, theirs, columns)).name == "flatten_order"
    assert explain(glue(before, theirs, h.reshape(2, 15, 4))).name == "flatten_order"


def test_jax_gelu_is_the_tanh_form():
    with jax.enable_x64(True):
        ours = np.array(jax.nn.gelu(jnp.asarray(C)))
    cause = explain(glue(BEFORE, gelu(C), ours))
    assert cause.name == "activation" and "GELU (tanh) in ours and GELU (erf) in theirs" in cause.sentence
    assert "Write jax.nn.gelu((output of mid.conv), approximate=False)." in cause.sentence
