"""How far the frameworks are apart in steps of samplers, in whole samples, and in likelihoods.

As in `measures`, torch_ref's side is computed anew whenever a measurement is called.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.flow
import torch_ref.likelihood
import torch_ref.sampling.reverse
import torch_ref.sampling.samplers
import torch_ref.sampling.steps
import torch_ref.schedules
from jax_ddpm import data
from jax_ddpm.evaluation import bits_per_dimension, flow_bits_per_dimension
from jax_ddpm.sampling import reverse, samplers
from jax_ddpm.sampling.steps import first_history
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.image_size import ImageSize, height_and_width
from parity_tests.measures import NETWORK, TORCH, channels_first, channels_last, pair, random, relative, twin
from parity_tests.measures_training import SMALL, digits, trained

NUM_SAMPLES = {np.float32: 8, np.float64: 2}  # float64 takes ten times as long


def reverse_steps() -> float:
    """One reverse step at several t, for each objective, variance and clipping, float32."""
    kinds = [
        DiffusionConfig(objective=objective, variance=variance, clip=clip)
        for objective in ("eps", "x0", "v")
        for variance in ("beta", "posterior")
        for clip in ("x0", "state", "none")
    ]
    limits = [DiffusionConfig(clip="x0", clip_range=0.5), DiffusionConfig(clip="dynamic", clip_max=1.5)]
    return max(reverse_steps_of(config, SamplerConfig()) for config in [*kinds, *limits])


def reverse_steps_from_pure_noise() -> float:
    """One step of each sampler at several t of a schedule that ends in pure noise, or nearly so, float32."""
    kinds = [
        DiffusionConfig(objective=objective, clip=clip, schedule="scaled_linear", zero_terminal_snr=True)
        for objective, clip in (("v", "none"), ("x0", "x0"))
    ]
    samplers = ("ddpm", "ddim", "dpmpp", "heun", "euler")
    nearly = reverse_steps_of(DiffusionConfig(objective="v", schedule="cosine"), SamplerConfig("heun"))
    return max(nearly, *(reverse_steps_of(config, SamplerConfig(sampler)) for config in kinds for sampler in samplers))


def reverse_steps_of(config: DiffusionConfig, sampler: SamplerConfig) -> float:
    """One step of a sampler at the first and the last two timesteps and in the middle, float32."""
    g, chain, worst = np.random.default_rng(4), np.arange(1000)[::-1], 0.0
    x, prediction, noise = (g.standard_normal((3, 8, 8, 1)).astype(np.float32) for _ in range(3))
    ours, theirs = schedule_tables(config), torch_ref.schedules.schedule_tables(config)
    step = reverse.make_step(ours, config, sampler, chain, lambda x, t: x / 2)
    twin_step = torch_ref.sampling.reverse.make_step(theirs, config, sampler, chain, lambda x, t: x / 2)
    history, twin_history = (), ()
    if sampler.sampler == "dpmpp":
        history, twin_history = [first_history(x)], [torch_ref.sampling.steps.first_history(channels_first(x))]
    for t in (999, 998, 500, 1, 0):
        a = step(x, prediction, jnp.int32(t), noise, *history)
        b = twin_step(channels_first(x), channels_first(prediction), t, channels_first(noise), *twin_history)
        if history:
            (a, *history), (b, *twin_history) = a, b
        assert np.isfinite(a).all()
        worst = max(worst, relative(a, channels_last(b)))
    return worst


@cache
def sampled_by_jax(dtype, sampler: SamplerConfig, size: ImageSize) -> np.ndarray:
    """Whole samples of the trained network, (N, H, W, 1)."""
    with jax.enable_x64(dtype == np.float64):
        ours, _ = pair(trained()[2], NETWORK, 1, dtype)
        settings = {"sampler": sampler, "config": DiffusionConfig(), "image_shape": (*height_and_width(size), 1)}
        return samplers.sample(ours, NUM_SAMPLES[dtype], 11, **settings, dtype=dtype)


def sampled(dtype, sampler: SamplerConfig, size: ImageSize = 8) -> tuple[np.ndarray, np.ndarray]:
    """The same samples from both frameworks."""
    theirs = twin(trained()[2], NETWORK, 1, dtype)
    settings = {"sampler": sampler, "config": DiffusionConfig(), "image_shape": (*height_and_width(size), 1)}
    return sampled_by_jax(dtype, sampler, size), torch_ref.sampling.samplers.sample(
        theirs, NUM_SAMPLES[dtype], 11, **settings, dtype=TORCH[dtype]
    )


def reverse_process(dtype=np.float32, sampler: SamplerConfig = samplers.ANCESTRAL, size: ImageSize = 8) -> float:
    return float(np.abs(np.subtract(*sampled(dtype, sampler, size))).max())


def pixels(dtype=np.float32, sampler: SamplerConfig = samplers.ANCESTRAL) -> float:
    """The share of 8-bit pixels that differ; 1 (all) if any is more than one level apart."""
    a, b = (data.to_uint8(x).astype(int) for x in sampled(dtype, sampler))
    return 1.0 if np.abs(a - b).max() > 1 else float(np.mean(a != b))


# Likelihood


class Formula(nnx.Module):
    """Some bounded function of the pixel, its neighbour and t, and a share for a learned variance."""

    def __call__(self, x, t):
        prediction = jnp.tanh(x + 0.5 * jnp.roll(x, 1, axis=2)) + 0.1 * jnp.sin(t.astype(x.dtype)).reshape(-1, 1, 1, 1)
        return jnp.concatenate([prediction, jnp.cos(3 * prediction)], axis=-1)


class TorchFormula(torch.nn.Module):
    def forward(self, x, t):
        prediction = torch.tanh(x + 0.5 * torch.roll(x, 1, 3)) + 0.1 * torch.sin(t.to(x.dtype)).reshape(-1, 1, 1, 1)
        return torch.cat([prediction, torch.cos(3 * prediction)], dim=1)


BOUND_KINDS = [
    DiffusionConfig(timesteps=12, beta_end=0.4, objective=objective, variance=variance, clip=clip)
    for objective, variance, clip in (("x0", "posterior", "x0"), ("v", "learned_range", "none"))
]
OF_NETWORK = DiffusionConfig(timesteps=12, beta_end=0.4, objective="eps", variance="beta", clip="none")


def levels() -> np.ndarray:
    """Three small images, which have the lowest and the highest level."""
    g = np.random.default_rng(5)
    return g.choice(np.uint8([0, 1, 100, 254, 255]), (3, 2, 3, 2))


@cache
def bound_by_jax(config: DiffusionConfig) -> np.ndarray:
    with jax.enable_x64(True):
        settings = {"config": config, "dtype": jnp.float64}
        return bits_per_dimension(Formula(), levels(), None, 9, 2, **settings).per_image


def bounds() -> float:
    """Bits per dimension of each image from all timesteps, for several objectives and variances, float64."""
    worst = 0.0
    for config in BOUND_KINDS:
        settings = {"config": config, "dtype": torch.float64}
        theirs = torch_ref.likelihood.bits_per_dimension(TorchFormula(), levels(), None, 9, 2, **settings)
        worst = max(worst, relative(bound_by_jax(config), theirs.per_image))
    return worst


@cache
def network_bound_by_jax() -> np.ndarray:
    with jax.enable_x64(True):
        ours, _ = pair(random(SMALL.network, 1)(), SMALL.network, 1, np.float64)
        return bits_per_dimension(ours, digits()[:2], 4, config=OF_NETWORK, dtype=jnp.float64).per_image


def network_bound() -> float:
    """Bits per dimension of two digits from drawn timesteps, with a network, float64."""
    theirs = twin(random(SMALL.network, 1)(), SMALL.network, 1, np.float64)
    settings = {"config": OF_NETWORK, "dtype": torch.float64}
    found = torch_ref.likelihood.bits_per_dimension(theirs, digits()[:2], 4, **settings)
    return relative(network_bound_by_jax(), found.per_image)


@cache
def flow_by_jax() -> np.ndarray:
    with jax.enable_x64(True):
        settings = {"config": BOUND_KINDS[-1], "dtype": jnp.float64}
        return flow_bits_per_dimension(Formula(), levels(), 7, 9, 3, **settings).per_image


def flow() -> float:
    """Bits per dimension of each image by the probability-flow ODE, float64."""
    settings = {"config": BOUND_KINDS[-1], "dtype": torch.float64}
    found = torch_ref.flow.flow_bits_per_dimension(TorchFormula(), levels(), 7, 9, 3, **settings)
    return relative(flow_by_jax(), found.per_image)
