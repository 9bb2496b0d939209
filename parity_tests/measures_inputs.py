"""How far the frameworks are apart with other data ranges and other times of the network.

As in `measures`, torch_ref's side is computed anew whenever a measurement is called.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.likelihood
import torch_ref.objectives
import torch_ref.sampling.samplers
import torch_ref.step
from jax_ddpm.evaluation.likelihood import bits_per_dimension
from jax_ddpm.objectives import make_objective
from jax_ddpm.sampling import samplers
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.training.step import prepare_images
from parity_tests.measures import channels_first, channels_last, relative

SHAPE, T = (4, 6, 2), 12
CONFIG = DiffusionConfig(timesteps=T, schedule="cosine", variance="learned_range")
CONFIGS = (
    replace(CONFIG, data_range=(0.0, 1.0), t_input="from_one"),
    replace(CONFIG, data_range=(-0.5, 0.5), t_input="fraction", clip="dynamic", clip_max=1.5),
    replace(CONFIG, data_range=(0.0, 2.0), t_input="fraction_from_one", clip="state"),
)
SAMPLER = SamplerConfig("ddpm", num_steps=7)


class Formula(nnx.Module):
    """A prediction and a variance: bounded functions of the pixel, its neighbour and t."""

    def __call__(self, x, t):
        t = jnp.asarray(t).astype(x.dtype).reshape(-1, 1, 1, 1)
        y = jnp.tanh(x + 0.5 * jnp.roll(x, 1, axis=2)) + 0.1 * jnp.sin(t)
        return jnp.concatenate([y, jnp.cos(x + t)], axis=-1)


class TorchFormula(torch.nn.Module):
    def forward(self, x, t):
        t = t.to(x.dtype).reshape(-1, 1, 1, 1)
        y = torch.tanh(x + 0.5 * torch.roll(x, 1, 3)) + 0.1 * torch.sin(t)
        return torch.cat([y, torch.cos(x + t)], dim=1)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 images, timesteps, and noise."""
    g = np.random.default_rng(4)
    return g.integers(0, 256, (T, *SHAPE), np.uint8), np.arange(T), g.standard_normal((T, *SHAPE))


@cache
def losses_by_jax(config: DiffusionConfig) -> np.ndarray:
    images, t, noise = batch()
    with jax.enable_x64(True):
        x_0 = prepare_images(jnp.asarray(images), jnp.float64, None, config.data_range)
        objective = make_objective(config, jnp.float64)
        return np.asarray(objective.loss_per_image(Formula(), x_0, jnp.asarray(t), jnp.asarray(noise)))


def losses() -> float:
    """Losses of 8-bit images at all timesteps, with the bound of a learned variance, float64."""
    images, t, noise = batch()
    errors = []
    for config in CONFIGS:
        x_0 = torch_ref.step.prepare_images(torch.from_numpy(images), torch.float64, None, config.data_range)
        objective = torch_ref.objectives.make_objective(config, torch.float64)
        theirs = objective.loss_per_image(TorchFormula(), x_0, torch.from_numpy(t), channels_first(noise))
        errors.append(relative(losses_by_jax(config), theirs.numpy()))
    return max(errors)


@cache
def bits_by_jax(config: DiffusionConfig) -> np.ndarray:
    with jax.enable_x64(True):
        return bits_per_dimension(Formula(), batch()[0][:3], config=config, dtype=jnp.float64).per_image


def bits() -> float:
    """Bits per dimension of 8-bit images, float64."""
    errors = []
    for config in CONFIGS:
        settings = {"config": config, "dtype": torch.float64}
        theirs = torch_ref.likelihood.bits_per_dimension(TorchFormula(), batch()[0][:3], **settings)
        errors.append(relative(bits_by_jax(config), theirs.per_image))
    return max(errors)


@cache
def sampled_by_jax(config: DiffusionConfig) -> np.ndarray:
    with jax.enable_x64(True):
        settings = {"sampler": SAMPLER, "dtype": jnp.float64}
        return np.asarray(samplers.sample_indices(Formula(), config, SHAPE, 9, np.arange(4), **settings)[0])


def samples() -> float:
    """Whole samples, with the three kinds of clipping, float64."""
    errors = []
    for config in CONFIGS:
        settings = {"sampler": SAMPLER, "dtype": torch.float64}
        theirs, _ = torch_ref.sampling.samplers.sample_indices(
            TorchFormula(), config, SHAPE, 9, np.arange(4), **settings
        )
        errors.append(float(np.abs(sampled_by_jax(config) - channels_last(theirs)).max()))
    return max(errors)
