"""A run that takes seconds."""

from collections.abc import Callable
from dataclasses import replace

import jax

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.network_config import ConvBlockConfig
from jax_ddpm.spec.run_config import DataConfig, OutputConfig, RunConfig, TrainingConfig

UNOPTIMISED = {"xla_backend_optimization_level": 0}  # compiles twice as fast

SMALL = RunConfig(
    preset="tiny",
    data=DataConfig(dataset="digits", image_size=8),
    network=ConvBlockConfig(widths=(32,), time_width=32),
    diffusion=DiffusionConfig(timesteps=20, beta_end=0.4),
    training=TrainingConfig(steps=24, batch_size=16, learning_rate=1e-3),
    output=OutputConfig(log_every=4, validate_every=12, checkpoint_every=8, num_samples=4),
)


def small(**changes) -> RunConfig:
    """SMALL with fields changed, whatever section they are in."""
    config = SMALL
    for name in ("data", "network", "diffusion", "sampling", "training", "output"):
        section = getattr(config, name)
        here = {key: value for key, value in changes.items() if hasattr(section, key)}
        config = replace(config, **{name: replace(section, **here)})
    return config


def jit(function: Callable) -> Callable:
    return jax.jit(function, compiler_options=UNOPTIMISED)
