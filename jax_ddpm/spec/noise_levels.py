"""Noise levels in texts: timesteps, and the numbers of the objectives edm and flow."""

import numpy as np

from jax_ddpm.spec.diffusion_config import DiffusionConfig


def symbol(config: DiffusionConfig) -> str:
    """The name of the noise level."""
    return "sigma" if config.objective == "edm" else "t"


def level_name(config: DiffusionConfig) -> str:
    """What the noise level is."""
    return "noise level" if config.is_continuous else "timestep"


def level_text(level) -> str:
    """A noise level as text: a timestep, or a number of three digits."""
    return str(level) if np.issubdtype(type(level), np.integer) else f"{level:.3g}"
