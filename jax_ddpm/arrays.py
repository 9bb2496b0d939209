"""The array type of this package, and the dtype in which it computes sums."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def upcast_dtype(dtype):
    """The dtype in which to sum values of `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def upcast(x):
    """x cast to float32. float64 stays float64."""
    return x.astype(upcast_dtype(x.dtype))
