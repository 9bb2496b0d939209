"""Every random number of the project has an address: (seed, purpose, ...).

No code passes keys on from one draw to the next, so every draw can be repeated from its address alone. This makes
exact resume, sharding and the PyTorch twin (`torch_ref/rng.py`) simple. The generator is threefry2x32 of jax.random.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_ddpm import ops
from jax_ddpm.spec.inputs import check_seed

PARAMS = 0  # (PARAMS, crc32 of the parameter's PyTorch name)
TIMESTEPS = 1  # (TIMESTEPS, step): a (B,) draw of t
NOISE = 2  # (NOISE, step): a (B, H, W, C) draw of eps
DROPOUT = 3  # (DROPOUT, step, number of the dropout call, index in the batch): an (H, W, C) draw
SAMPLING = 4  # (SAMPLING, image index, t): an (H, W, C) draw. x_T uses t = T. Inpainting uses t + v (T + 1) at visit v
FLIP = 5  # (FLIP, step): a (B,) draw of coin flips
VALIDATION = 6  # (VALIDATION, TIMESTEPS or NOISE, batch number): fixed draws for the validation loss
KNOWN = 7  # (KNOWN, image index, t + v (T + 1)): an (H, W, C) draw, noise of the known pixels after visit v of t
JUMP = 8  # (JUMP, image index, t + v (T + 1)): an (H, W, C) draw, noise of the jump up after visit v of t
LIKELIHOOD = 9  # (LIKELIHOOD, image index, t): an (H, W, C) draw of eps. t = T: a (K,) draw of t. t = T + 1: of signs
LABEL_DROPOUT = 10  # (LABEL_DROPOUT, step): a (B,) draw of which labels become the null label
SELF_CONDITION = 11  # (SELF_CONDITION, step): whether the network is given the x_0 that it predicts in a first pass


def key(seed: int, purpose: int, *address) -> jax.Array:
    """The key at an address. `address` holds integers (Python or traced) in [0, 2^32), folded in one after another.

    Raises UserError for a seed outside [0, 2^32).
    """
    k = jax.random.key(check_seed(seed), impl=ops.prng_impl())
    for number in (purpose, *address):
        k = jax.random.fold_in(k, jnp.asarray(number).astype(jnp.uint32) if hasattr(number, "dtype") else number)
    return k


def timesteps(k: jax.Array, batch_size: int, num_timesteps: int) -> jax.Array:
    """Uniform t in [0, T): int32 (B,)."""
    return jax.random.randint(k, (batch_size,), 0, num_timesteps, dtype=jnp.int32)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def normal(k: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Standard normal numbers, float32 or float64, equal to those of jax.random.normal. Images are channels last.

    k: one key, or keys (B,) for draws (B, *shape).
    """
    actual_dtype = jax.dtypes.canonicalize_dtype(dtype)  # float64 becomes float32 unless jax_enable_x64 is set
    minval = np.nextafter(np.array(-1, actual_dtype), np.array(0, actual_dtype))

    def uniform(k):  # in (-1, 1)
        def draw(k):
            return jax.random.uniform(k, shape, dtype, minval, 1)

        return jax.vmap(draw)(k) if k.ndim else draw(k)

    u = ops.draw_once(uniform, k)
    return np.array(np.sqrt(2), actual_dtype) * lax.erf_inv(u)
