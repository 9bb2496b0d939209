"""How far the frameworks are apart with self-conditioning: in outputs, samples, edits and training steps.

Samples and edits use a formula for the network. As in `measures`, torch_ref's side is computed anew whenever a
measurement is called.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.sampling.editing
import torch_ref.sampling.inpainting
import torch_ref.sampling.samplers
from jax_ddpm import rng
from jax_ddpm.sampling import editing, inpainting, samplers
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.lucidrains_config import LucidrainsConfig
from parity_tests import measures_training
from parity_tests.measures import channels_first, channels_last, compiled, pair, random, relative, twin
from parity_tests.measures_registered import Registered

NETWORK = LucidrainsConfig(
    **{"dim": 8, "dim_mults": (1,), "attn_heads": (1,), "attn_dim_head": (4,), "num_mem_kv": 1},
    self_condition=True,
    dropout=0.2,
)
SHAPE, T = (4, 6, 2), 12
SCHEDULE = DiffusionConfig(timesteps=T, beta_end=0.4)


def inputs() -> np.ndarray:
    """x and x_self_cond, float64 (2, 2, 4, 4, 1)."""
    return np.random.default_rng(12).standard_normal((2, 2, 4, 4, 1))


@cache
def outputs_of_jax() -> tuple[np.ndarray, ...]:
    with jax.enable_x64(True):
        ours, _ = pair(random(NETWORK, 1)(), NETWORK, 1, np.float64)
        graph, state = nnx.split(ours)

        def loss(x, x_0, state):
            y = nnx.merge(graph, state)(x, jnp.array([3, 9]), x_self_cond=x_0)
            return jnp.mean(y**2), y

        gradients = compiled(jax.grad(loss, argnums=(0, 1), has_aux=True), quick=True)
        (x_grad, x_0_grad), y = gradients(*map(jnp.asarray, inputs()), state)
        return tuple(map(np.asarray, (y, x_grad, x_0_grad)))


def outputs() -> float:
    """Outputs of the network, and the gradients of x and of the given x_0, float64."""
    theirs = twin(random(NETWORK, 1)(), NETWORK, 1, np.float64)
    x, x_0 = (channels_first(each).requires_grad_() for each in inputs())
    y = theirs(x, torch.tensor([3, 9]), x_self_cond=x_0)
    torch.mean(y**2).backward()
    found = y.detach(), x.grad, x_0.grad
    return max(relative(a, channels_last(b)) for a, b in zip(outputs_of_jax(), found, strict=True))


class Formula(nnx.Module):
    """A bounded function of the pixel, its neighbour, t and the x_0 that was predicted before."""

    self_condition = True

    def __call__(self, x, t, x_self_cond):
        t = jnp.asarray(t).astype(x.dtype).reshape(-1, 1, 1, 1)
        return jnp.tanh(x + 0.5 * jnp.roll(x, 1, axis=2)) + 0.1 * jnp.sin(t) + 0.3 * jnp.sin(2 * x_self_cond)


class TorchFormula(torch.nn.Module):
    self_condition = True

    def forward(self, x, t, x_self_cond):
        t = t.to(x.dtype).reshape(-1, 1, 1, 1)
        return torch.tanh(x + 0.5 * torch.roll(x, 1, 3)) + 0.1 * torch.sin(t) + 0.3 * torch.sin(2 * x_self_cond)


class Guide(nnx.Module):
    """A weaker model without self-conditioning."""

    def __call__(self, x, t):
        return 0.8 * jnp.tanh(x)


class TorchGuide(torch.nn.Module):
    def forward(self, x, t):
        return 0.8 * torch.tanh(x)


CHAINS = {
    "ddpm": (SamplerConfig("ddpm"), SCHEDULE),
    "ddim": (SamplerConfig("ddim", 6, eta=0.5), replace(SCHEDULE, objective="v", data_range=(0.0, 1.0))),
    "dpmpp": (SamplerConfig("dpmpp", 6), replace(SCHEDULE, objective="x0", clip="dynamic")),
    "euler": (SamplerConfig("euler", 6), SCHEDULE),
    "heun": (SamplerConfig("heun", 6), SCHEDULE),
    "edm": (SamplerConfig("heun", 5), DiffusionConfig(objective="edm")),
    "flow": (SamplerConfig("midpoint", 5), DiffusionConfig(objective="flow")),
    "registered": (SamplerConfig("test_sampler", 6), SCHEDULE),
    "guide": (SamplerConfig("ddpm", 6, guidance=2.0), SCHEDULE),
}


@cache
def sampled_by_jax(name: str) -> np.ndarray:
    sampler, config = CHAINS[name]
    guide = Guide() if name == "guide" else None
    with jax.enable_x64(True), Registered():
        settings = {"sampler": sampler, "dtype": jnp.float64, "guide": guide}
        return np.asarray(samplers.sample_indices(Formula(), config, SHAPE, 9, np.arange(4), **settings)[0])


def samples() -> float:
    """Whole samples of each sampler, and with a guide, float64."""
    worst = 0.0
    for name, (sampler, config) in CHAINS.items():
        guide = TorchGuide() if name == "guide" else None
        settings = {"sampler": sampler, "dtype": torch.float64, "guide": guide}
        network, indices = TorchFormula(), np.arange(4)
        with Registered():
            theirs, _ = torch_ref.sampling.samplers.sample_indices(network, config, SHAPE, 9, indices, **settings)
        worst = max(worst, float(np.abs(sampled_by_jax(name) - channels_last(theirs)).max()))
    return worst


INPAINTING = {"sampler": SamplerConfig("ddpm", 6), "config": SCHEDULE, "resamplings": 2, "jump": 2}
INVERSION = {"sampler": SamplerConfig("ddim", 6), "config": SCHEDULE}


def images_and_mask() -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(SHAPE[:2])
    mask[:2] = 1
    return np.random.default_rng(13).uniform(-1, 1, (3, *SHAPE)), mask


@cache
def edited_by_jax() -> tuple[np.ndarray, np.ndarray]:
    images, mask = images_and_mask()
    with jax.enable_x64(True):
        painted = inpainting.inpaint(Formula(), images, mask, 4, **INPAINTING, dtype=jnp.float64)
        return painted, editing.invert(Formula(), images, **INVERSION, dtype=jnp.float64)


def edits() -> float:
    """Inpainted and inverted images, float64, relative."""
    images, mask = images_and_mask()
    inpaint, invert = torch_ref.sampling.inpainting.inpaint, torch_ref.sampling.editing.invert
    painted = inpaint(TorchFormula(), images, mask, 4, **INPAINTING, dtype=torch.float64)
    found = painted, invert(TorchFormula(), images, **INVERSION, dtype=torch.float64)
    return max(relative(a, b) for a, b in zip(edited_by_jax(), found, strict=True))


RUN = measures_training.in_double(replace(measures_training.RUN, network=NETWORK), accumulate=2)


def small_digits() -> np.ndarray:
    return measures_training.float_digits()[:, 2:6, 2:6]


def training() -> float:
    """Of the parameters after two steps with dropout, of which one is given a predicted x_0, in learning rates."""
    train_jax, train_torch = measures_training.train_jax, measures_training.train_torch
    ours, theirs = (train(RUN, 2, np.float64, small_digits) for train in (train_jax, train_torch))
    keys = [rng.key(RUN.training.seed, rng.SELF_CONDITION, step) for step in range(2)]
    assert [bool(jax.random.bernoulli(k, jnp.float32(0.5))) for k in keys] == [False, True]
    return measures_training.furthest(ours[1], theirs[1]) / RUN.training.learning_rate
