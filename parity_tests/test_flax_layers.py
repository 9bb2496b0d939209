"""Flax's own layers: their arrays as PyTorch has them, by PyTorch's own numbers in float64, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from jax_ddpm import weights
from jax_ddpm.spec.errors import UserError
from jax_ddpm.unets.flax_layers import adapt


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def settings():
    return {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64}


def build(make):
    """A layer of Flax without values, which take time to draw, in evaluation mode."""

    def built():
        layer = make(settings())
        adapt(layer)
        return layer

    return nnx.eval_shape(built)


def attention(query, key, value, **_):
    """Flax's own computes the softmax in float32. Arrays are (B, tokens, heads, features)."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def first(x):
    """Channels first."""
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def last(y):
    return np.moveaxis(y.detach().numpy(), 1, -1)


def same(x):
    return torch.from_numpy(x)


def numpy(y):
    return (y[0] if isinstance(y, tuple) else y).detach().numpy()


IMAGES, TOKENS = draw(2, 5, 6, 4), draw(2, 3, 4)
CASES = {  # Flax's layer, PyTorch's, the input of ours, and how PyTorch's is made of it and back
    "Linear": (lambda s: nnx.Linear(4, 3, **s), nn.Linear(4, 3), TOKENS, same, numpy),
    "Linear, no bias": (
        lambda s: nnx.Linear(4, 3, use_bias=False, **s),
        nn.Linear(4, 3, bias=False),
        TOKENS,
        same,
        numpy,
    ),
    "Conv": (
        lambda s: nnx.Conv(4, 6, (3, 2), strides=2, padding=((1, 1), (0, 0)), **s),
        nn.Conv2d(4, 6, (3, 2), 2, (1, 0)),
        *(IMAGES, first, last),
    ),
    "Conv, groups": (
        lambda s: nnx.Conv(4, 6, (3, 3), padding="VALID", feature_group_count=2, kernel_dilation=2, **s),
        nn.Conv2d(4, 6, 3, groups=2, dilation=2),
        *(IMAGES, first, last),
    ),
    "Conv, 1 axis": (lambda s: nnx.Conv(4, 6, 3, padding=1, **s), nn.Conv1d(4, 6, 3, padding=1), TOKENS, first, last),
    "Conv, 3 axes": (
        lambda s: nnx.Conv(4, 2, (2, 3, 1), padding="VALID", **s),
        nn.Conv3d(4, 2, (2, 3, 1)),
        *(draw(1, 3, 4, 2, 4), first, last),
    ),
    "ConvTranspose": (
        lambda s: nnx.ConvTranspose(4, 4, (2, 2), strides=(2, 2), padding="VALID", **s),
        nn.ConvTranspose2d(4, 4, 2, 2),
        *(IMAGES, first, last),
    ),
    "ConvTranspose, padding 1": (
        lambda s: nnx.ConvTranspose(4, 4, (4, 4), strides=(2, 2), padding="SAME", **s),
        nn.ConvTranspose2d(4, 4, 4, 2, 1),
        *(IMAGES, first, last),
    ),
    "ConvTranspose, transpose_kernel": (
        lambda s: nnx.ConvTranspose(4, 4, (4, 4), strides=(2, 2), padding="SAME", transpose_kernel=True, **s),
        nn.ConvTranspose2d(4, 4, 4, 2, 1),
        *(IMAGES, first, last),
    ),
    "ConvTranspose, 1 axis": (
        lambda s: nnx.ConvTranspose(4, 5, 2, strides=2, padding="VALID", **s),
        nn.ConvTranspose1d(4, 5, 2, 2),
        *(TOKENS, first, last),
    ),
    "Embed": (lambda s: nnx.Embed(7, 4, **s), nn.Embedding(7, 4), np.array([[0, 6, 3]]), same, numpy),
    "LayerNorm": (lambda s: nnx.LayerNorm(4, epsilon=1e-5, **s), nn.LayerNorm(4), TOKENS, same, numpy),
    "RMSNorm": (lambda s: nnx.RMSNorm(4, epsilon=1e-5, **s), nn.RMSNorm(4, eps=1e-5), TOKENS, same, numpy),
    "GroupNorm": (lambda s: nnx.GroupNorm(4, 2, epsilon=1e-5, **s), nn.GroupNorm(2, 4), IMAGES, first, last),
    "GroupNorm, no scale": (
        lambda s: nnx.GroupNorm(4, 2, epsilon=1e-5, use_scale=False, use_bias=False, **s),
        nn.GroupNorm(2, 4, affine=False),
        *(IMAGES, first, last),
    ),
    "InstanceNorm": (
        lambda s: nnx.InstanceNorm(4, epsilon=1e-5, **s),
        nn.InstanceNorm2d(4, affine=True),
        *(IMAGES, first, last),
    ),
    "BatchNorm": (lambda s: nnx.BatchNorm(4, **s), nn.BatchNorm2d(4), IMAGES, first, last),
    "MultiHeadAttention": (
        lambda s: nnx.MultiHeadAttention(2, 4, attention_fn=attention, decode=False, **s),
        nn.MultiheadAttention(4, 2, batch_first=True),
        *(TOKENS, same, numpy),
    ),
    "MultiHeadAttention, no bias": (
        lambda s: nnx.MultiHeadAttention(4, 4, use_bias=False, attention_fn=attention, decode=False, **s),
        nn.MultiheadAttention(4, 4, bias=False, batch_first=True),
        *(TOKENS, same, numpy),
    ),
    "Dropout": (lambda s: nnx.Dropout(0.5, rngs=s["rngs"]), nn.Dropout(0.5), TOKENS, same, numpy),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_has_the_numbers_of_pytorch(name):
    make, theirs, x, to_torch, from_torch = CASES[name]
    ours, theirs = build(make), theirs.double().eval()
    values = {
        key: np.abs(draw(*value.shape)) if key.endswith("running_var") else draw(*value.shape)
        for key, value in theirs.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()}, strict=True)
    weights.load_state_dict(ours, values, np.float64)
    with torch.no_grad():
        y = theirs(*[to_torch(x)] * (3 if "Attention" in name else 1))
    np.testing.assert_allclose(ours(jnp.asarray(x)), from_torch(y), rtol=0, atol=1e-13)
    back = weights.state_dict(ours)
    assert back.keys() == values.keys()
    for key, value in values.items():
        np.testing.assert_array_equal(back[key], value)


def test_attention_with_other_inputs_for_keys_and_values():
    ours = build(lambda s: nnx.MultiHeadAttention(2, 4, in_kv_features=6, decode=False, **s))
    theirs = nn.MultiheadAttention(4, 2, kdim=6, vdim=6, batch_first=True).double().eval()
    values = {key: draw(*value.shape) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
    weights.load_state_dict(ours, values, np.float64)
    queries, keys = TOKENS, draw(2, 5, 6)
    with torch.no_grad():
        y, _ = theirs(same(queries), same(keys), same(keys))
    y_ours = ours(jnp.asarray(queries), jnp.asarray(keys))
    np.testing.assert_allclose(y_ours, y.numpy(), rtol=0, atol=3e-6)  # a softmax in float32
    back = weights.state_dict(ours)
    assert back.keys() == values.keys()


def test_a_wrong_epsilon_or_an_unflipped_kernel_would_be_seen():
    """The comparison above is not blind."""
    make, theirs, x, to_torch, from_torch = CASES["ConvTranspose"]
    ours = build(make)
    theirs.double()
    values = {key: value.numpy() for key, value in theirs.state_dict().items()}
    weights.load_state_dict(ours, values | {"weight": values["weight"][:, :, ::-1, ::-1]}, np.float64)
    assert np.abs(np.asarray(ours(x)) - from_torch(theirs(to_torch(x)))).max() > 0.01
    norm = nnx.GroupNorm(4, 2, **settings())
    their_norm = nn.GroupNorm(2, 4).double()
    small = 0.01 * IMAGES
    assert np.abs(np.asarray(norm(small)) - last(their_norm(first(small)))).max() > 0.01


def test_arrays_without_a_counterpart_are_refused():
    with pytest.raises(UserError, match=r"missing: bias"):
        weights.load_state_dict(nnx.Linear(4, 3, **settings()), {"weight": np.zeros((3, 4))}, np.float64)
