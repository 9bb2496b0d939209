"""What the functions of this package take for an array, and in which precision they sum."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def wide_dtype(dtype):
    """float32, or the dtype itself where that is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def wide(x):
    """x in float32, or better if it is."""
    return x.astype(wide_dtype(x.dtype))
