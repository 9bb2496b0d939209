"""What the functions of this package take for an array, and in which precision they sum."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def upcast_dtype(dtype):
    """float32, or the dtype itself where that is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def upcast(x):
    """x in float32, or better if it is."""
    return x.astype(upcast_dtype(x.dtype))
