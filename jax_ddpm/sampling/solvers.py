"""Solvers of the probability-flow ODE of the objectives edm and flow: Euler, Heun and midpoint steps.

Step number i goes from level i + 1 of the grid (`Continuous.levels`) down to level i. Level 0 is the clean image.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jax_ddpm.arrays import Array
from jax_ddpm.objectives import Continuous
from jax_ddpm.sampling.steps import threshold
from jax_ddpm.spec.diffusion_config import CONTINUOUS_STEPS, SamplerConfig

Images = Float[Array, "b h w c"]


def make_solver(objective: Continuous, sampler: SamplerConfig, network: Callable) -> tuple[Callable, Callable]:
    """The functions `step` and `predict` of `reverse.reverse_process`. network: (x, time) -> prediction."""
    levels = jnp.asarray(objective.levels(sampler.num_steps or CONTINUOUS_STEPS), objective.dtype)

    def predict(x, level):
        return network(*objective.network_input(x, level))

    step = {"euler": euler_step, "heun": heun_step, "midpoint": midpoint_step}[sampler.sampler]
    return partial(step, objective, levels, predict), lambda x, i: predict(x, levels[i + 1])


def slope(objective: Continuous, x: Images, level: Array, prediction: Images) -> Images:
    """dx / dlevel with the predicted x_0, limited as the settings say. level: one number."""
    config, level = objective.config, jnp.full((x.shape[0],), level)
    x_0 = objective.predicted_x_0(x, level, prediction)
    limits = config.clip, config.clip_percentile, config.clip_range, config.clip_max, config.data_range
    x_0 = threshold(x_0, *limits)
    return objective.slope(x, level, x_0)


def euler_step(
    objective: Continuous, levels: Array, predict: Callable, x: Images, prediction: Images, i: Array, noise: None
) -> Images:
    """Euler's method, of first order."""
    return x + (levels[i] - levels[i + 1]) * slope(objective, x, levels[i + 1], prediction)


def heun_step(
    objective: Continuous, levels: Array, predict: Callable, x: Images, prediction: Images, i: Array, noise: None
) -> Images:
    """Heun's method, of second order: Karras et al. 2022, Algorithm 1. The last step, to level 0, is Euler's."""
    level, next_level = levels[i + 1], levels[i]
    h = next_level - level
    d = slope(objective, x, level, prediction)  # line 4
    x_next = x + h * d  # line 5

    def corrected():
        prediction = predict(x_next, jnp.full((x.shape[0],), next_level))
        d_next = slope(objective, x_next, next_level, prediction)  # line 7
        return x + h * (d + d_next) / 2  # line 8

    return jax.lax.cond(i > 0, corrected, lambda: x_next)


def midpoint_step(
    objective: Continuous, levels: Array, predict: Callable, x: Images, prediction: Images, i: Array, noise: None
) -> Images:
    """The midpoint method, of second order: the slope of the whole step is that in its middle."""
    level, next_level = levels[i + 1], levels[i]
    middle = (level + next_level) / 2
    x_middle = x + (middle - level) * slope(objective, x, level, prediction)
    prediction = predict(x_middle, jnp.full((x.shape[0],), middle))
    return x + (next_level - level) * slope(objective, x_middle, middle, prediction)
