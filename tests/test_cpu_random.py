"""The random bits of `cpu.threefry` are jax.random's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm import rng
from jax_ddpm.cpu.threefry import THREEFRY

SHAPES = [(), (1,), (0, 3), (3, 5, 2), (64, 33)]


def keys(seed: int, *numbers: int):
    """The key at an address by jax.random's own threefry, and by the unrolled one."""
    pair = [jax.random.key(seed, impl=impl) for impl in ("threefry2x32", THREEFRY)]
    for number in numbers:
        pair = [jax.random.fold_in(k, number) for k in pair]
    return pair


def same(draw, theirs, ours):
    np.testing.assert_array_equal(draw(theirs), draw(ours))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("numbers", [(), (0,), (5, 2**32 - 1), (1, 2, 3, 4)])
def test_keys(seed, numbers):
    theirs, ours = keys(seed, *numbers)
    same(jax.random.key_data, theirs, ours)
    same(lambda k: jax.random.key_data(jax.random.split(k, 3)), theirs, ours)
    many = jnp.arange(7, dtype=jnp.uint32)
    same(lambda k: jax.random.key_data(jax.vmap(lambda n: jax.random.fold_in(k, n))(many)), theirs, ours)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_draws(shape, x64):
    with jax.enable_x64(x64):
        theirs, ours = keys(3, 4)
        for dtype in (jnp.uint8, jnp.uint16, jnp.uint32) + x64 * (jnp.uint64,):
            same(lambda k, dtype=dtype: jax.random.bits(k, shape, dtype), theirs, ours)
        for dtype in (jnp.bfloat16, jnp.float32) + x64 * (jnp.float64,):
            same(lambda k, dtype=dtype: jax.random.normal(k, shape, dtype), theirs, ours)
            same(lambda k, dtype=dtype: jax.random.uniform(k, shape, dtype), theirs, ours)
        same(lambda k: jax.random.randint(k, shape, 0, 1000), theirs, ours)
        many = jax.jit(jax.vmap(lambda k: jax.random.normal(k, shape)))
        same(lambda k: many(jax.random.split(k, 3)), theirs, ours)
        for dtype in (jnp.uint8, jnp.uint32) + x64 * (jnp.uint64,):
            bits = jax.jit(jax.vmap(lambda k, dtype=dtype: jax.random.bits(k, shape, dtype)))
            same(lambda k, bits=bits: bits(jax.random.split(k, 3)), theirs, ours)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_normal_numbers(shape, x64):
    """Of a key, and of each of some keys."""
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        theirs, ours = keys(3, 4)
        np.testing.assert_array_equal(jax.random.normal(theirs, shape, dtype), rng.normal(ours, shape, dtype))
        draws = [jax.random.normal(k, shape, dtype) for k in jax.random.split(theirs, 3)]
        np.testing.assert_array_equal(draws, rng.normal(jax.random.split(ours, 3), shape, dtype))


def test_float64_without_x64_is_float32():
    """-1, whose inverse error function is infinite, is then still none of the uniform numbers."""
    bounds = []

    def uniform(k, shape, dtype, low, high):
        bounds.append(np.asarray(low, jax.dtypes.canonicalize_dtype(dtype)))
        return jnp.zeros(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", uniform)
        assert rng.normal(keys(3, 4)[1], (7,), jnp.float64).dtype == jnp.float32
    assert bounds[0] > -1
