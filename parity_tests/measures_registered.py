"""How far the frameworks are apart with a registered schedule, objective and sampler.

As in `measures`, torch_ref's side is computed anew whenever a measurement is called.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.diffusion
import torch_ref.sampling.samplers
import torch_ref.schedules
from jax_ddpm import diffusion
from jax_ddpm.sampling import samplers
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec import registered
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from parity_tests.measures import channels_first, channels_last, relative

SHAPE, T = (4, 6, 2), 12
CONFIG = DiffusionConfig(timesteps=T, schedule="test_schedule", objective="test_objective", clip="dynamic")
SAMPLER = SamplerConfig("test_sampler", num_steps=7)


def some_new_noise(x_t, x_0, eps, now, below, noise):
    """A part of the noise is new. Adds 1% of x_t, so that all arguments count."""
    x = below.signal * x_0 + below.sigma * (0.6 * eps + 0.8 * noise)
    return 0.99 * x + 0.01 * now.sigma / now.signal * x_t


class Registered:
    """A context in which the three parts are registered. The objective is the difference of noise and image."""

    def __enter__(self):
        objective = registered.OwnObjective(
            lambda x_0, noise, level: noise - x_0,
            lambda x_t, prediction, level: (x_t - level.sigma * prediction) / (level.signal + level.sigma),
        )
        registered.SCHEDULES["test_schedule"] = lambda timesteps: np.linspace(0.01, 0.5, timesteps) ** 1.5
        registered.OBJECTIVES["test_objective"] = objective
        registered.SAMPLERS["test_sampler"] = registered.OwnSampler(some_new_noise, True)

    def __exit__(self, *_):
        del registered.SCHEDULES["test_schedule"]
        del registered.OBJECTIVES["test_objective"]
        del registered.SAMPLERS["test_sampler"]


class Formula(nnx.Module):
    """A bounded function of the pixel, its neighbour and t."""

    def __call__(self, x, t):
        t = jnp.asarray(t).astype(x.dtype).reshape(-1, 1, 1, 1)
        return jnp.tanh(x + 0.5 * jnp.roll(x, 1, axis=2)) + 0.1 * jnp.sin(t)


class TorchFormula(torch.nn.Module):
    def forward(self, x, t):
        return torch.tanh(x + 0.5 * torch.roll(x, 1, 3)) + 0.1 * torch.sin(t.to(x.dtype).reshape(-1, 1, 1, 1))


def losses() -> float:
    """Losses of images at all timesteps, weighted by min-SNR, float64."""
    g, t = np.random.default_rng(8), np.arange(T)
    x_0, noise = g.standard_normal((2, T, *SHAPE))
    settings = {"min_snr_gamma": 5.0}
    with Registered():
        tables = schedule_tables(CONFIG, np.float64)
        with jax.enable_x64(True):
            arguments = Formula(), jnp.asarray(x_0), jnp.asarray(t), jnp.asarray(noise)
            ours = np.asarray(diffusion.loss_per_image(tables, CONFIG.objective, *arguments, **settings))
        tables = torch_ref.schedules.schedule_tables(CONFIG, np.float64)
        arguments = TorchFormula(), channels_first(x_0), torch.from_numpy(t), channels_first(noise)
        theirs = torch_ref.diffusion.loss_per_image(tables, CONFIG.objective, *arguments, **settings)
    return relative(ours, theirs.numpy())


@cache
def sampled_by_jax() -> np.ndarray:
    with Registered(), jax.enable_x64(True):
        settings = {"sampler": SAMPLER, "dtype": jnp.float64}
        return np.asarray(samplers.sample_indices(Formula(), CONFIG, SHAPE, 9, np.arange(4), **settings)[0])


def samples() -> float:
    """Whole samples with new noise in every step, float64."""
    ours = sampled_by_jax()
    with Registered():
        settings = {"sampler": SAMPLER, "dtype": torch.float64}
        theirs, _ = torch_ref.sampling.samplers.sample_indices(
            TorchFormula(), CONFIG, SHAPE, 9, np.arange(4), **settings
        )
    return float(np.abs(ours - channels_last(theirs)).max())
