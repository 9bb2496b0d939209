"""threefry2x32 (Salmon et al. 2011) for CPUs: the same bits as jax.random, without the loop over rounds.

On CPUs, jax.random compiles the rounds as a loop. It runs on one core and writes the result of every round to memory.
That is six times slower for large arrays, and costs 0.1 ms for a single key.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import random

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA  # constant of the key schedule
jax_threefry = random.threefry_prng_impl


def threefry2x32(key, x0, x1):
    """Encrypt the counters (x0, x1), uint32, in twenty rounds. Returns both output words. key: uint32 (2,)."""
    keys = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << bits | x1 >> (32 - bits))
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def random_bits(key, bit_width: int, shape):
    """Random unsigned integers. Element i comes from both output words of counter i (JAX's "partitionable" mode)."""
    if bit_width not in (32, 64) or math.prod(shape) >= 2**32:
        return jax_threefry.random_bits(key, bit_width, shape)
    counter = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    high, low = threefry2x32(key, jnp.zeros_like(counter), counter)
    return lax.optimization_barrier(
        high ^ low if bit_width == 32 else high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64)
    )


@partial(jax.jit, inline=True)
def fold_in(key, number):
    """jax.random.fold_in: a new key from a key and a uint32."""
    return lax.optimization_barrier(jnp.stack(threefry2x32(key, jnp.uint32(0), number)))


THREEFRY = random.define_prng_impl(
    key_shape=(2,),
    seed=jax_threefry.seed,
    split=jax_threefry.split,
    random_bits=random_bits,
    fold_in=fold_in,
    name="threefry2x32_unrolled",
    tag="fry_cpu",
)
