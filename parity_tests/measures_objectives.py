"""How far the frameworks are apart in the objectives edm and flow, in kinds of loss, and in their solvers.

As in `measures`, torch_ref's side is computed anew whenever a measurement is called.
"""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torch_ref.objectives
import torch_ref.rng
import torch_ref.sampling.samplers
import torch_ref.sampling.solvers
from jax_ddpm import rng, unets, weights
from jax_ddpm.objectives import make_objective
from jax_ddpm.sampling import samplers, solvers
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from parity_tests.measures import TORCH, channels_first, channels_last, compiled, pair, random, relative, twin
from parity_tests.measures_sampling import Formula, TorchFormula
from parity_tests.measures_training import SMALL

EDM, FLOW = DiffusionConfig(objective="edm", clip="none"), DiffusionConfig(objective="flow", clip="none")
UNIFORM = DiffusionConfig(objective="flow", flow_time="uniform")
DISCRETE = [DiffusionConfig(objective=objective) for objective in ("eps", "x0", "v")]
LOSSES = [
    {"loss_kind": kind, "huber_delta": 0.5, **weights}
    for kind, weights in product(("l2", "l1", "huber"), ({}, {"min_snr_gamma": 5.0}, {"p2_gamma": 0.5, "p2_k": 2.0}))
]


def images(dtype) -> tuple[np.ndarray, np.ndarray]:
    """x_0 and noise."""
    g = np.random.default_rng(6)
    x_0, noise = (g.standard_normal((6, 4, 6, 1)).astype(dtype) for _ in range(2))
    return x_0, noise


def drawn_levels(objective) -> torch.Tensor:
    """Noise levels of torch_ref from the address of a training step."""
    return objective.draw_level(torch_ref.rng.key(7, torch_ref.rng.TIMESTEPS, 5), 6)


def batch(config: DiffusionConfig, dtype):
    """x_0, noise, and the noise levels of jax_ddpm from the same address."""
    return *images(dtype), make_objective(config, dtype).draw_level(rng.key(7, rng.TIMESTEPS, 5), 6)


def formula(x, t):
    return Formula()(x, t)[..., : x.shape[-1]]


def torch_formula(x, t):
    return TorchFormula()(x, t)[:, : x.shape[1]]


@cache
def losses_by_jax(config: DiffusionConfig) -> np.ndarray:
    with jax.enable_x64(True):
        x_0, noise, level = batch(config, np.float64)
        objective = make_objective(config, np.float64)
        return np.array([objective.loss_per_image(formula, x_0, level, noise, **kind) for kind in LOSSES])


def losses() -> float:
    """Of each image's loss, with levels drawn in each framework, for all objectives, kinds and weights, float64."""
    worst = 0.0
    for config in (EDM, FLOW, UNIFORM, *DISCRETE):
        objective = torch_ref.objectives.make_objective(config, torch.float64)
        level = drawn_levels(objective)
        x_0, noise = images(np.float64)
        found = [
            objective.loss_per_image(torch_formula, channels_first(x_0), level, channels_first(noise), **kind).numpy()
            for kind in LOSSES
        ]
        worst = max(worst, relative(losses_by_jax(config), np.array(found)))
    return worst


@cache
def gradients_by_jax(config: DiffusionConfig) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        ours = unets.build(SMALL.network, 1)
        weights.load_state_dict(ours, random(SMALL.network, 1)(), np.float64)
        graph, params, buffers = nnx.split(ours, nnx.Param, ...)
        x_0, noise, level = batch(config, np.float64)
        objective = make_objective(config, np.float64)

        def loss(params):
            return objective.loss(nnx.merge(graph, params, buffers), x_0, level, noise)

        grads = compiled(jax.grad(loss), quick=True)(params)
        return weights.state_dict(nnx.merge(graph, grads, buffers))


def gradients() -> float:
    """Of every parameter's gradient of the loss of edm and flow, as a share of the largest of all, float64."""
    worst = 0.0
    for config in (EDM, FLOW):
        theirs = twin(random(SMALL.network, 1)(), SMALL.network, 1, np.float64)
        objective = torch_ref.objectives.make_objective(config, torch.float64)
        level, (x_0, noise) = drawn_levels(objective), images(np.float64)
        objective.loss(theirs, channels_first(x_0), level, channels_first(noise)).backward()
        wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
        largest = max(np.abs(g).max() for g in wanted.values())
        ours = gradients_by_jax(config)
        worst = max(worst, *(np.abs(ours[name] - g).max() / largest for name, g in wanted.items()))
    return float(worst)


@cache
def compiled_step(config: DiffusionConfig, sampler: SamplerConfig):
    step, _ = solvers.make_solver(make_objective(config), sampler, formula)
    return compiled(lambda x, prediction, i: step(x, prediction, i, None), quick=True)


def solver_steps() -> float:
    """One step of each solver, at the first, a middle and the last level, with and without thresholding, float32."""
    g, worst = np.random.default_rng(4), 0.0
    x, prediction = (g.standard_normal((3, 8, 8, 1)).astype(np.float32) for _ in range(2))
    clipped = DiffusionConfig(objective="flow", clip="dynamic", clip_percentile=0.9)
    for config, name in product((EDM, clipped), ("euler", "heun", "midpoint")):
        sampler = SamplerConfig(name, 6)
        step = compiled_step(config, sampler)
        objective = torch_ref.objectives.make_objective(config)
        twin_step, _ = torch_ref.sampling.solvers.make_solver(objective, sampler, torch_formula)
        for i in (5, 3, 0):
            a = step(x, prediction, jnp.int32(i))
            b = twin_step(channels_first(x), channels_first(prediction), i, None)
            worst = max(worst, relative(a, channels_last(b)))
    return worst


@cache
def sampled_by_jax(config: DiffusionConfig, sampler: SamplerConfig, dtype) -> np.ndarray:
    with jax.enable_x64(dtype == np.float64):
        ours, _ = pair(random(SMALL.network, 1)(), SMALL.network, 1, dtype)
        return samplers.sample(ours, 2, 11, sampler=sampler, config=config, image_shape=(8, 8, 1), dtype=dtype)


def samples(config: DiffusionConfig, sampler: SamplerConfig, dtype=np.float64) -> float:
    """Of whole samples of a network with random weights, as a share of the largest magnitude."""
    theirs = twin(random(SMALL.network, 1)(), SMALL.network, 1, dtype)
    settings = {"sampler": sampler, "config": config, "image_shape": (8, 8, 1), "dtype": TORCH[dtype]}
    found = torch_ref.sampling.samplers.sample(theirs, 2, 11, **settings)
    return relative(sampled_by_jax(config, sampler, dtype), found)
