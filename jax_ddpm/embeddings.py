"""Time embeddings: from a time t to a vector."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from jax_ddpm.arrays import Array


def geometric_frequencies(width: int, freq_shift: int = 0) -> np.ndarray:
    """10000^(-i / (d/2 - freq_shift)) for i = 0 .. d/2 - 1. The width d must be even. Returns float32 (d/2,).

    Computed as exp of an exponent that is rounded to float32, as in the trained checkpoints. exp itself is computed in
    float64 and rounded once, because float32 exp differs in the last bit between libraries.
    """
    exponent = np.float32(-np.log(10000.0)) * np.arange(width // 2, dtype=np.float32)
    return np.exp((exponent / np.float32(width // 2 - freq_shift)).astype(np.float64)).astype(np.float32)


def sinusoid_table(rows: int, width: int) -> np.ndarray:
    """Table of time embeddings: columns 2i and 2i + 1 of row t are sin and cos of t * 10000^(-4i / width).

    The exponent is twice the usual one (Vaswani et al. 2017, section 3.5), as in the checkpoints of `layer_norm`. The
    phases are float32, and their sines are computed in float64 and rounded once. Returns float32 (rows, width).
    """
    frequencies = (10000.0 ** (-4 * np.arange(width // 2) / width)).astype(np.float32)
    phase = (np.arange(rows, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(rows, width).astype(np.float32)


def interleaved_embedding(t: Real[Array, "b"], frequencies: Float[Array, "k"]) -> Float[Array, "b 2*k"]:
    """[sin f_0 t, cos f_0 t, sin f_1 t, cos f_1 t, ...] (Vaswani et al. 2017, section 3.5), in frequencies' dtype."""
    phase = t.astype(frequencies.dtype)[:, None] * frequencies
    return jnp.stack([jnp.sin(phase), jnp.cos(phase)], axis=-1).reshape(t.shape[0], -1)


def concatenated_embedding(
    t: Real[Array, "b"], frequencies: Float[Array, "k"], flip_sin_to_cos: bool
) -> Float[Array, "b 2*k"]:
    """All sines of frequencies * t, then all cosines; cosines first with `flip_sin_to_cos`. In frequencies' dtype."""
    phase = t.astype(frequencies.dtype)[:, None] * frequencies
    parts = [jnp.sin(phase), jnp.cos(phase)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)
