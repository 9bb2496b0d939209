"""What the functions of this package take for an array."""

import jax
import numpy as np

Array = jax.Array | np.ndarray
