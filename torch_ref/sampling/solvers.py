"""Solvers of the probability-flow ODE of the objectives edm and flow: Euler, Heun and midpoint steps.

Step number i goes from level i + 1 of the grid (`Continuous.levels`) down to level i. Level 0 is the clean image.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from jax_ddpm.spec.diffusion_config import CONTINUOUS_STEPS, SamplerConfig
from torch_ref.objectives import Continuous
from torch_ref.sampling.steps import threshold, where


def make_solver(objective: Continuous, sampler: SamplerConfig, network: Callable) -> tuple[Callable, Callable]:
    """The functions `step` and `predict` of `reverse.reverse_process`. network: (x, time) -> prediction."""
    levels = torch.as_tensor(objective.levels(sampler.num_steps or CONTINUOUS_STEPS), dtype=objective.dtype)

    def predict(x, level):
        return network(*objective.network_input(x, level))

    step = {"euler": euler_step, "heun": heun_step, "midpoint": midpoint_step}[sampler.sampler]
    return partial(step, objective, levels, predict), lambda x, i: predict(x, levels.to(x.device)[i + 1])


def for_images(x: Tensor, level: Tensor) -> Tensor:
    """One level for each image of x: (B,), on its device."""
    return level.to(x.device).expand(x.shape[0])


def slope(objective: Continuous, x: Tensor, level: Tensor, prediction: Tensor) -> Tensor:
    """dx / dlevel with the predicted x_0, limited as the settings say. level: one number."""
    config, level = objective.config, for_images(x, level)
    x_0 = objective.predicted_x_0(x, level, prediction)
    limits = config.clip, config.clip_percentile, config.clip_range, config.clip_max, config.data_range
    x_0 = threshold(x_0, *limits)
    return objective.slope(x, level, x_0)


def euler_step(
    objective: Continuous, levels: Tensor, predict: Callable, x: Tensor, prediction: Tensor, i: int, noise: None
) -> Tensor:
    """Euler's method, of first order."""
    return x + (levels[i] - levels[i + 1]) * slope(objective, x, levels[i + 1], prediction)


def heun_step(
    objective: Continuous, levels: Tensor, predict: Callable, x: Tensor, prediction: Tensor, i: int, noise: None
) -> Tensor:
    """Heun's method, of second order: Karras et al. 2022, Algorithm 1. The last step, to level 0, is Euler's."""
    level, next_level = levels[i + 1], levels[i]
    h = next_level - level
    d = slope(objective, x, level, prediction)  # line 4
    x_next = x + h * d  # line 5

    def corrected():
        prediction = predict(x_next, for_images(x, next_level))
        d_next = slope(objective, x_next, next_level, prediction)  # line 7
        return x + h * (d + d_next) / 2  # line 8

    return where(i > 0, corrected, x_next)


def midpoint_step(
    objective: Continuous, levels: Tensor, predict: Callable, x: Tensor, prediction: Tensor, i: int, noise: None
) -> Tensor:
    """The midpoint method, of second order: the slope of the whole step is that in its middle."""
    level, next_level = levels[i + 1], levels[i]
    middle = (level + next_level) / 2
    x_middle = x + (middle - level) * slope(objective, x, level, prediction)
    prediction = predict(x_middle, for_images(x, middle))
    return x + (next_level - level) * slope(objective, x_middle, middle, prediction)
