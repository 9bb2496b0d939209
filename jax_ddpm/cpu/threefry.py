"""threefry2x32 (Salmon et al. 2011) for CPUs: jax.random's own bits, without the loop over rounds.

JAX has XLA compile that loop there, which then runs on one core and writes every round's numbers to memory: six times
slower for large arrays, and a tenth of a millisecond for a single key.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import random

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA  # of the key schedule
jax_random = random.threefry_prng_impl


def threefry2x32(key, x0, x1):
    """Both words of the cipher of the counters (x0, x1), in twenty rounds. key: uint32 (2,)."""
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
    """Of unsigned integers: number i is of the two words of counter i (JAX: "partitionable")."""
    if bit_width not in (32, 64) or math.prod(shape) >= 2**32:
        return jax_random.random_bits(key, bit_width, shape)
    counter = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    high, low = threefry2x32(key, jnp.zeros_like(counter), counter)
    return lax.optimization_barrier(
        high ^ low if bit_width == 32 else high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64)
    )


@partial(jax.jit, inline=True)
def fold_in(key, number):
    """The key's successor for a uint32."""
    return lax.optimization_barrier(jnp.stack(threefry2x32(key, jnp.uint32(0), number)))


THREEFRY = random.define_prng_impl(
    key_shape=(2,),
    seed=jax_random.seed,
    split=jax_random.split,
    random_bits=random_bits,
    fold_in=fold_in,
    name="threefry2x32_unrolled",
    tag="fry_cpu",
)
