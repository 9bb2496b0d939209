"""Time embeddings: from an integer t to a vector."""

import numpy as np
import torch


def geometric_frequencies(width: int, freq_shift: int = 0) -> np.ndarray:
    """10000^(-i / (d/2 - freq_shift)) for i = 0 .. d/2 - 1: float32 (d/2,). d is even. Rounded as in jax_ddpm."""
    exponent = np.float32(-np.log(10000.0)) * np.arange(width // 2, dtype=np.float32)
    return np.exp((exponent / np.float32(width // 2 - freq_shift)).astype(np.float64)).astype(np.float32)


def sinusoid_table(rows: int, width: int) -> np.ndarray:
    """Table of time embeddings: columns 2i and 2i + 1 of row t are sin and cos of t * 10000^(-4i / width)."""
    frequencies = (10000.0 ** (-4 * np.arange(width // 2) / width)).astype(np.float32)
    phase = (np.arange(rows, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(rows, width).astype(np.float32)


def interleaved_embedding(t: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """[sin f_0 t, cos f_0 t, sin f_1 t, cos f_1 t, ...] (Vaswani et al. 2017, section 3.5), in frequencies' dtype."""
    phase = t.to(frequencies.dtype)[:, None] * frequencies
    return torch.stack([torch.sin(phase), torch.cos(phase)], dim=-1).reshape(t.shape[0], -1)


def concatenated_embedding(t: torch.Tensor, frequencies: torch.Tensor, flip_sin_to_cos: bool) -> torch.Tensor:
    """All sines of frequencies * t, then all cosines; cosines first with `flip_sin_to_cos`. In frequencies' dtype."""
    phase = t.to(frequencies.dtype)[:, None] * frequencies
    parts = [torch.sin(phase), torch.cos(phase)]
    return torch.cat(parts[::-1] if flip_sin_to_cos else parts, dim=-1)
