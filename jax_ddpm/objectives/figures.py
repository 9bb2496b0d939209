"""Noise levels for figures: their signal-to-noise ratios, and evenly chosen ones."""

import numpy as np

from jax_ddpm.objectives import make_objective
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig


def log_snr(config: DiffusionConfig, level: np.ndarray) -> np.ndarray:
    """The logarithm of the signal-to-noise ratio at levels (N,): float64. -inf where nothing is left of x_0."""
    with np.errstate(divide="ignore"):
        if not config.is_continuous:
            return np.log(schedule_tables(config, np.float64).snr)[level]
        signal, sigma = make_objective(config, np.float64).signal_and_sigma(np.asarray(level, np.float64))
        return 2 * (np.log(signal) - np.log(sigma))


def even_levels(config: DiffusionConfig, count: int) -> np.ndarray:
    """At most `count` levels, ascending. Timesteps (int32) evenly from 0 to T - 1; else float32, those of a sampler."""
    if config.is_continuous:
        return make_objective(config).levels(count)[1:].astype(np.float32)
    return np.unique(np.round(np.linspace(0, config.timesteps - 1, count)).astype(np.int32))
