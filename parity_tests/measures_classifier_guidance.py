"""How far the frameworks are apart with classifier guidance: in logits, gradients and whole samples.

Samples use formulas for the model and the classifier. As in `measures`, torch_ref's side is computed anew whenever a
measurement is called.
"""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.sampling.classifier_guidance
import torch_ref.sampling.samplers
from jax_ddpm import unets
from jax_ddpm.sampling import samplers
from jax_ddpm.sampling.classifier_guidance import class_gradient
from jax_ddpm.spec.adm_classifier_config import ADMClassifierConfig
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.labels import Labels
from jax_ddpm.weights import load_state_dict
from parity_tests import measures_guidance, measures_self_condition
from parity_tests.measures import TORCH, channels_first, channels_last, compiled, random_weights, relative, twin

NETWORKS = {  # between them, they have every setting
    "attention": ADMClassifierConfig(
        **{"widths": (32, 64), "model_channels": 64, "num_res_blocks": 1, "attention": (False, True), "map_size": 3},
        **{"num_head_channels": 16, "time_scale": 0.25, "num_classes": 5},
    ),
    "adaptive": ADMClassifierConfig(
        **{"widths": (32, 32), "num_res_blocks": 1, "attention": (True, False), "pool": "adaptive", "map_size": None},
        **{"use_new_attention_order": True, "use_scale_shift_norm": False, "resblock_updown": False},
        **{"num_head_channels": 8, "num_classes": 5},
    ),
}
T_OF_NETWORK, CLASSES_OF_NETWORK = np.array([7, 640]), np.array([3, 0], np.int32)


def inputs() -> np.ndarray:
    return np.random.default_rng(21).standard_normal((2, 6, 6, 3))


@cache
def of_network_by_jax(name: str, dtype) -> tuple[np.ndarray, ...]:
    config = NETWORKS[name]
    with jax.enable_x64(dtype == np.float64):
        network = unets.build(config, 3)
        load_state_dict(network, random_weights(config, 3), dtype)
        graph, state = nnx.split(network)

        def outputs(state, x):
            classifier = nnx.merge(graph, state)
            t = jnp.asarray(T_OF_NETWORK)
            return classifier(x, t), class_gradient(classifier, jnp.asarray(CLASSES_OF_NETWORK), 2.0)(x, t)

        return tuple(map(np.asarray, compiled(outputs, quick=True)(state, jnp.asarray(inputs().astype(dtype)))))


def networks(dtype=np.float64) -> float:
    """Logits, and the gradients of log p(y | x_t) by x_t, of classifiers with both poolings."""
    worst, t = 0.0, torch.from_numpy(T_OF_NETWORK)
    for name, config in NETWORKS.items():
        theirs = twin(random_weights(config, 3), config, 3, dtype)
        x = channels_first(inputs()).to(TORCH[dtype])
        make = torch_ref.sampling.classifier_guidance.class_gradient
        gradient = make(theirs, torch.from_numpy(CLASSES_OF_NETWORK), 2.0)(x, t)
        found = theirs(x, t).detach().numpy(), channels_last(gradient)
        worst = max(worst, *(relative(a, b) for a, b in zip(of_network_by_jax(name, dtype), found, strict=True)))
    return worst


SHAPE, CLASSES, SCALE, T = (4, 6, 2), np.array([0, 2, 1, 3], np.int32), 3.0, 12
PATTERNS = np.random.default_rng(22).standard_normal((*SHAPE, 4))


class Formula(nnx.Module):
    """A classifier by patterns of the pixels, and t."""

    def __call__(self, x, t):
        t = jnp.asarray(t).astype(x.dtype).reshape(-1, 1, 1, 1)
        return jnp.einsum("bhwc,hwck->bk", jnp.tanh(x + 0.3 * jnp.sin(t)), jnp.asarray(PATTERNS, x.dtype))


class TorchFormula(torch.nn.Module):
    def forward(self, x, t):
        t = t.to(x.dtype).reshape(-1, 1, 1, 1)
        return torch.einsum("bchw,hwck->bk", torch.tanh(x + 0.3 * torch.sin(t)), torch.from_numpy(PATTERNS).to(x.dtype))


ONE_GUIDANCE = Labels(CLASSES, of_classifier=CLASSES)


@dataclass(frozen=True)
class Chain:
    """A reverse process with a classifier. formulas: the module with those for the model."""

    sampler: SamplerConfig
    config: DiffusionConfig
    formulas: object = measures_guidance
    labels: Labels = ONE_GUIDANCE


SCHEDULE = DiffusionConfig(timesteps=T, beta_end=0.4)
LEARNED = replace(SCHEDULE, variance="learned_range")
BOTH = Labels(CLASSES, np.full(4, measures_guidance.NULL), None, CLASSES)
CHAINS = {
    "ddpm, learned variance": Chain(SamplerConfig("ddpm", 6), LEARNED),
    "ddpm, not limited": Chain(SamplerConfig("ddpm", 6), replace(SCHEDULE, clip="none", variance="posterior")),
    "ddim, v, both guidances": Chain(
        SamplerConfig("ddim", 6, eta=0.5, guidance=2.0), replace(SCHEDULE, objective="v"), labels=BOTH
    ),
    "dpmpp, x0": Chain(SamplerConfig("dpmpp", 6), replace(SCHEDULE, objective="x0", clip="dynamic")),
    "heun, self-conditioned": Chain(
        SamplerConfig("heun", 5), SCHEDULE, measures_self_condition, Labels(of_classifier=CLASSES)
    ),
}


@cache
def sampled_by_jax(name: str) -> np.ndarray:
    chain = CHAINS[name]
    settings = {"sampler": chain.sampler, "labels": chain.labels, "classifier": Formula(), "classifier_scale": SCALE}
    with jax.enable_x64(True):
        network = chain.formulas.Formula()
        drawn = samplers.sample_indices(network, chain.config, SHAPE, 9, np.arange(4), dtype=jnp.float64, **settings)
        return np.asarray(drawn[0])


def samples() -> float:
    """Whole samples of several samplers and objectives with a classifier, float64."""
    worst = 0.0
    for name, chain in CHAINS.items():
        settings = {"sampler": chain.sampler, "labels": chain.labels, "classifier": TorchFormula()}
        settings |= {"classifier_scale": SCALE, "dtype": torch.float64}
        network = chain.formulas.TorchFormula()
        drawn = torch_ref.sampling.samplers.sample_indices(network, chain.config, SHAPE, 9, np.arange(4), **settings)
        worst = max(worst, float(np.abs(sampled_by_jax(name) - channels_last(drawn[0])).max()))
    return worst
