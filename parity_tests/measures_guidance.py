"""How far the frameworks are apart with labels: in guided predictions, samples and edits, and in likelihoods.

The networks are formulas of the state, the timestep and the label. As in `measures`, torch_ref's side is computed anew
whenever a measurement is called.
"""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.flow
import torch_ref.likelihood
import torch_ref.sampling.editing
import torch_ref.sampling.guidance
import torch_ref.sampling.inpainting
import torch_ref.sampling.samplers
from jax_ddpm.evaluation import bits_per_dimension, flow_bits_per_dimension
from jax_ddpm.sampling import editing, guidance, inpainting, samplers
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.labels import Labels
from parity_tests.measures import channels_first, channels_last, relative

NULL, SHAPE, T = 3, (4, 6, 2), 12
LABELS = np.array([0, 2, NULL, 1], np.int32)


class Formula(nnx.Module):
    """A bounded function of the pixel, its neighbour, t and the label, and a share for a learned variance."""

    def __init__(self, strength: float = 1.0):
        self.strength, self.null_index = strength, NULL

    def __call__(self, x, t, labels=None):
        t, label = (jnp.asarray(each).astype(x.dtype).reshape(-1, 1, 1, 1) for each in (t, labels))
        prediction = jnp.tanh((1 + 0.3 * self.strength * label) * x + 0.5 * jnp.roll(x, 1, axis=2))
        prediction = prediction + 0.1 * jnp.sin(t) + 0.2 * jnp.cos(label)
        return jnp.concatenate([prediction, jnp.cos(3 * prediction)], axis=-1)


class TorchFormula(torch.nn.Module):
    def __init__(self, strength: float = 1.0):
        super().__init__()
        self.strength, self.null_index = strength, NULL

    def forward(self, x, t, labels=None):
        t, label = (each.to(x.dtype).reshape(-1, 1, 1, 1) for each in (t, labels))
        prediction = torch.tanh((1 + 0.3 * self.strength * label) * x + 0.5 * torch.roll(x, 1, 3))
        prediction = prediction + 0.1 * torch.sin(t) + 0.2 * torch.cos(label)
        return torch.cat([prediction, torch.cos(3 * prediction)], dim=1)


GUIDANCES = {
    "plain": SamplerConfig(guidance=2.5),
    "negative": SamplerConfig(guidance=-1.0),
    "rescaled": SamplerConfig(guidance=2.5, guidance_rescale=0.7),
    "interval": SamplerConfig(guidance=2.5, guidance_interval=(3, 8)),
}


def predictions() -> float:
    """Guided predictions of states at timesteps in and around the interval, with a learned variance, float64."""
    g, t, worst = np.random.default_rng(6), np.array([2, 3, 8, 9]), 0.0
    x, a, b = g.standard_normal((len(t), *SHAPE)), *g.standard_normal((2, len(t), *SHAPE[:2], 2 * SHAPE[2]))
    for sampler in GUIDANCES.values():
        with jax.enable_x64(True):
            ours = np.asarray(guidance.guided_prediction(sampler, jnp.asarray(x), jnp.asarray(t), a, jnp.asarray(b)))
        images = map(channels_first, (x, a, b))
        x_t, conditional, unconditional = images
        arguments = sampler, x_t, torch.from_numpy(t), conditional, unconditional
        theirs = torch_ref.sampling.guidance.guided_prediction(*arguments)
        worst = max(worst, relative(ours, channels_last(theirs)))
    return worst


@dataclass(frozen=True)
class Chain:
    """A guided reverse process."""

    sampler: SamplerConfig
    config: DiffusionConfig
    has_guide: bool = False


SCHEDULE = DiffusionConfig(timesteps=T, beta_end=0.4)
CHAINS = {
    "ddpm, eps": Chain(SamplerConfig("ddpm", guidance=2.0), replace(SCHEDULE, variance="learned_range")),
    "ddim, v, interval": Chain(
        SamplerConfig("ddim", 6, eta=0.5, guidance=3.0, guidance_interval=(3, 9)), replace(SCHEDULE, objective="v")
    ),
    "dpmpp, x0, rescaled": Chain(
        SamplerConfig("dpmpp", 6, guidance=4.0, guidance_rescale=0.7), replace(SCHEDULE, objective="x0", clip="dynamic")
    ),
    "heun, eps, a guide": Chain(SamplerConfig("heun", 5, guidance=2.0), SCHEDULE, has_guide=True),
}


@cache
def sampled_by_jax(name: str) -> np.ndarray:
    chain = CHAINS[name]
    with jax.enable_x64(True):
        guide, of_guide = (Formula(0.5), LABELS) if chain.has_guide else (None, None)
        labels = Labels(LABELS, None if chain.has_guide else np.full_like(LABELS, NULL), of_guide)
        settings = {"sampler": chain.sampler, "dtype": jnp.float64, "labels": labels, "guide": guide}
        return np.asarray(samplers.sample_indices(Formula(), chain.config, SHAPE, 9, np.arange(4), **settings)[0])


def samples() -> float:
    """Whole guided samples of several samplers and objectives, one of them with a guide, float64."""
    worst = 0.0
    for name, chain in CHAINS.items():
        guide, of_guide = (TorchFormula(0.5), LABELS) if chain.has_guide else (None, None)
        labels = Labels(LABELS, None if chain.has_guide else np.full_like(LABELS, NULL), of_guide)
        settings = {"sampler": chain.sampler, "dtype": torch.float64, "labels": labels, "guide": guide}
        network, indices = TorchFormula(), np.arange(4)
        theirs, _ = torch_ref.sampling.samplers.sample_indices(network, chain.config, SHAPE, 9, indices, **settings)
        worst = max(worst, float(np.abs(sampled_by_jax(name) - channels_last(theirs)).max()))
    return worst


def edited(package, network, dtype) -> dict[str, np.ndarray]:
    """Images edited with labels and guidance: by img2img, inpainting, inversion and reconstruction."""
    images = np.tanh(np.random.default_rng(8).standard_normal((4, *SHAPE)))
    mask = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE[:2]) % 3 == 0
    options = {"labels": LABELS, "guidance": 2.0, "config": SCHEDULE, "dtype": dtype}
    deterministic = {**options, "sampler": SamplerConfig("ddim", 6)}
    return {
        "img2img": package.editing.img2img(network, images, 7, **options),
        "inpaint": package.inpainting.inpaint(network, images, mask, resamplings=2, jump=2, **options),
        "invert": package.editing.invert(network, images, **deterministic),
        "reconstruct": package.editing.reconstruct(network, images, **deterministic),
    }


class OfJax:
    editing, inpainting = editing, inpainting


class OfTorch:
    editing, inpainting = torch_ref.sampling.editing, torch_ref.sampling.inpainting


@cache
def edited_by_jax() -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        return edited(OfJax, Formula(), jnp.float64)


def edits() -> float:
    """Guided edits of images, float64, relative to the largest magnitude, at least 1."""
    ours, theirs = edited_by_jax(), edited(OfTorch, TorchFormula(), torch.float64)
    return max(float(np.abs(ours[name] - x).max() / max(1, np.abs(x).max())) for name, x in theirs.items())


LEARNED = replace(SCHEDULE, variance="learned_range")


def levels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (4, *SHAPE), np.uint8)


@cache
def bits_by_jax() -> np.ndarray:
    with jax.enable_x64(True):
        settings = {"batch_size": 2, "config": LEARNED, "dtype": jnp.float64, "labels": LABELS}
        functions = bits_per_dimension, flow_bits_per_dimension
        return np.array([function(Formula(), levels(), 5, **settings).per_image for function in functions])


def bits() -> float:
    """Bits per dimension of images with labels in two batches, by the bound and by the ODE, float64."""
    settings = {"batch_size": 2, "config": LEARNED, "dtype": torch.float64, "labels": LABELS}
    functions = torch_ref.likelihood.bits_per_dimension, torch_ref.flow.flow_bits_per_dimension
    theirs = [function(TorchFormula(), levels(), 5, **settings).per_image for function in functions]
    return relative(bits_by_jax(), np.array(theirs))
