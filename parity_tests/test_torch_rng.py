"""torch_ref.rng against jax.random: equal bits, uniforms and integers from the same key, and nearly equal normals."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_ddpm import rng as jax_rng
from jax_ddpm.spec.errors import UserError
from parity_tests.budgets import NOISE_SECONDS, NORMAL_FLOAT32, NORMAL_FLOAT32_UNEQUAL, NORMAL_FLOAT64
from torch_ref import rng

SEEDS = [0, 1, 20240229, 2**31, 2**32 - 1]
SHAPES = [(), (0,), (1,), (7,), (3, 5, 11), (1021,)]
MANY = (2**20,)
words = st.integers(0, 2**32 - 1)


def pair(seed, *address):
    """The same key in both."""
    return rng.key(seed, *address), jax_rng.key(seed, *address)


def assert_same(ours, theirs):
    theirs = np.asarray(theirs)
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("k", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_known_answers(k, counter, expected):
    """The known answers that Random123 (Salmon et al. 2011) ships for threefry2x32, 20 rounds."""
    x_0, x_1 = (np.array([word], np.uint32) for word in counter)
    out = rng.threefry2x32(np.array(k, np.uint32), x_0, x_1)
    assert tuple(int(word[0]) for word in out) == expected


def test_purposes_are_the_same():
    names = ["PARAMS", "TIMESTEPS", "NOISE", "DROPOUT", "SAMPLING", "FLIP", "VALIDATION"]
    assert [getattr(rng, name) for name in names] == [getattr(jax_rng, name) for name in names]


@settings(max_examples=50, deadline=None)
@given(words, st.lists(st.tuples(st.sampled_from(["fold_in", "split"]), words), max_size=6))
def test_chains_of_keys(seed, chain):
    ours, theirs = pair(seed, rng.NOISE)
    for what, number in chain:
        if what == "fold_in":
            ours, theirs = rng.fold_in(ours, number), jax.random.fold_in(theirs, number)
        else:
            ours, theirs = rng.split(ours, 3)[number % 3], jax.random.split(theirs, 3)[number % 3]
    assert_same(ours, jax.random.key_data(theirs))


@pytest.mark.parametrize("num", [1, 2, 5, 64])
def test_split(num):
    ours, theirs = pair(3, rng.PARAMS)
    assert_same(rng.split(ours, num), jax.random.key_data(jax.random.split(theirs, num)))


@pytest.mark.parametrize("seed", SEEDS)
def test_many_draws(seed):
    ours, theirs = pair(seed, rng.SAMPLING, 7, 1000)
    assert_same(rng.bits(ours, MANY), jax.random.bits(theirs, MANY, jnp.uint32))
    assert_same(rng.uniform(ours, MANY), jax.random.uniform(theirs, MANY, jnp.float32))
    assert_same(rng.randint(ours, MANY, 0, 1000), jax.random.randint(theirs, MANY, 0, 1000, jnp.int32))
    z, wanted = rng.normal(ours, MANY).numpy(), np.asarray(jax_rng.normal(theirs, MANY))
    np.testing.assert_allclose(z, wanted, rtol=0, atol=NORMAL_FLOAT32)
    assert np.mean(z != wanted) < NORMAL_FLOAT32_UNEQUAL


@pytest.mark.parametrize("seed", SEEDS)
def test_many_draws_in_float64(seed):
    with jax.enable_x64(True):
        ours, theirs = pair(seed, rng.NOISE, 3)
        assert_same(rng.bits(ours, MANY, np.uint64), jax.random.bits(theirs, MANY, jnp.uint64))
        assert_same(rng.uniform(ours, MANY, torch.float64), jax.random.uniform(theirs, MANY, jnp.float64))
        z, wanted = rng.normal(ours, MANY, torch.float64).numpy(), np.asarray(jax_rng.normal(theirs, MANY, jnp.float64))
    assert z.dtype == wanted.dtype == np.float64
    np.testing.assert_allclose(z, wanted, rtol=0, atol=NORMAL_FLOAT64)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    ours, theirs = pair(11, rng.NOISE)
    assert_same(rng.bits(ours, shape), jax.random.bits(theirs, shape, jnp.uint32))
    assert_same(rng.uniform(ours, shape), jax.random.uniform(theirs, shape, jnp.float32))
    assert_same(rng.randint(ours, shape, -5, 12), jax.random.randint(theirs, shape, -5, 12, jnp.int32))
    z, wanted = rng.normal(ours, shape).numpy(), np.asarray(jax_rng.normal(theirs, shape))
    assert z.shape == wanted.shape and z.dtype == wanted.dtype
    np.testing.assert_allclose(z, wanted, rtol=0, atol=NORMAL_FLOAT32)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (5, 5), (5, -5), (-7, 12345), (0, 2**16), (0, 70_000), (0, 2**31 - 1), (-(2**31), 2**31 - 1)],
)
def test_randint_ranges(low, high):
    ours, theirs = pair(2, rng.TIMESTEPS)
    assert_same(rng.randint(ours, (4099,), low, high), jax.random.randint(theirs, (4099,), low, high, jnp.int32))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_bernoulli(p):
    ours, theirs = pair(4, rng.FLIP, 9)
    assert_same(rng.bernoulli(ours, p, (1000,)), jax.random.bernoulli(theirs, jnp.float32(p), (1000,)))


@pytest.mark.parametrize("num_timesteps", [1, 10, 1000, 4096])
def test_timesteps(num_timesteps):
    ours, theirs = pair(4, rng.TIMESTEPS, 9)
    t = rng.timesteps(ours, 129, num_timesteps)
    assert t.dtype == torch.int64
    assert_same(t.int(), jax_rng.timesteps(theirs, 129, num_timesteps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_keys_at_once_draw_as_one_by_one(dtype):
    keys = rng.fold_in(rng.key(5, rng.SAMPLING), np.array([0, 3, 2**32 - 1]))
    for draw in (
        lambda k: rng.normal(rng.fold_in(k, 17), (3, 5, 2), dtype),
        lambda k: rng.uniform(k, (), dtype),
        lambda k: rng.randint(k, (3, 5), 0, 10),
    ):
        assert_same(draw(keys), np.stack([draw(k) for k in keys]))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", None])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(UserError, match=f"seed = {seed}: expected an integer"):
        rng.key(seed, rng.NOISE)


def test_numpy_integers_are_seeds():
    assert_same(rng.key(np.uint32(9), rng.NOISE, np.int64(3)), rng.key(9, rng.NOISE, 3))


def test_noise_is_fast():
    seconds = []
    for step in range(20):
        start = time.perf_counter()
        rng.normal(rng.key(0, rng.NOISE, step), (64, 32, 32, 1))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < NOISE_SECONDS
