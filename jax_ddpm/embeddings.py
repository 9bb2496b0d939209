"""Time embeddings: from an integer t to a vector."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_ddpm.arrays import Array


def interleaved_frequencies(width: int) -> np.ndarray:
    """J_i = 10000^(-i / (d/2)), i = 0 .. d/2 - 1, as exp of a float32 argument, rounded to float32.

    The argument's own rounding stays in, as trained checkpoints have it; the exponential is correctly rounded, which
    float32 library functions are not (they differ in the last bit from one another). Returns float32 (d/2,), d even.
    """
    exponent = np.float32(-np.log(10000.0)) * np.arange(width // 2, dtype=np.float32) / np.float32(width // 2)
    return np.exp(exponent.astype(np.float64)).astype(np.float32)


def sinusoid_table(rows: int, width: int) -> np.ndarray:
    """float32 (rows, width): columns 2i and 2i + 1 of row t are sin and cos of t * 10000^(-4i / width), in float32.

    That is twice the usual exponent (Vaswani et al. 2017, section 3.5), as the checkpoints of `layer_norm` have it. The
    sines of the float32 phases are correctly rounded.
    """
    frequencies = (10000.0 ** (-4 * np.arange(width // 2) / width)).astype(np.float32)
    phase = (np.arange(rows, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(rows, width).astype(np.float32)


def interleaved_embedding(t: Int[Array, "b"], frequencies: Float[Array, "k"]) -> Float[Array, "b 2*k"]:
    """[sin J_0 t, cos J_0 t, sin J_1 t, cos J_1 t, ...] (Vaswani et al. 2017, section 3.5), in the table's dtype."""
    phase = t.astype(frequencies.dtype)[:, None] * frequencies
    return jnp.stack([jnp.sin(phase), jnp.cos(phase)], axis=-1).reshape(t.shape[0], -1)


def concatenated_frequencies(width: int, freq_shift: int) -> np.ndarray:
    """10000^(-i / (d/2 - freq_shift)), i = 0 .. d/2 - 1: float32 (d/2,), rounded as `interleaved_frequencies` are."""
    exponent = np.float32(-np.log(10000.0)) * np.arange(width // 2, dtype=np.float32)
    return np.exp((exponent / np.float32(width // 2 - freq_shift)).astype(np.float64)).astype(np.float32)


def concatenated_embedding(
    t: Int[Array, "b"], frequencies: Float[Array, "k"], flip_sin_to_cos: bool
) -> Float[Array, "b 2*k"]:
    """All sines of frequencies * t, then all cosines; the other way round with `flip_sin_to_cos`. The table's dtype."""
    phase = t.astype(frequencies.dtype)[:, None] * frequencies
    parts = [jnp.sin(phase), jnp.cos(phase)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)
