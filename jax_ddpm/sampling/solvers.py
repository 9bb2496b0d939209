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


def make_solver(
    objective: Continuous, sampler: SamplerConfig, network: Callable, self_condition: bool = False
) -> tuple[Callable, Callable]:
    """The functions `step` and `predict` of `reverse.reverse_process`. network: (x, time) -> prediction.

    self_condition: steps have a history, (x_0,), and each call of the network is given the x_0 predicted before.
    """
    levels = jnp.asarray(objective.levels(sampler.num_steps or CONTINUOUS_STEPS), objective.dtype)

    def predict(x, level, **given):
        return network(*objective.network_input(x, level), **given)

    step = {"euler": euler_step, "heun": heun_step, "midpoint": midpoint_step}[sampler.sampler]

    def predict_at(x, i, **given):
        return predict(x, levels[i + 1], **given)

    return partial(step, objective, levels, predict), predict_at


def slope(objective: Continuous, x: Images, level: Array, prediction: Images) -> tuple[Images, Images]:
    """dx / dlevel with the predicted x_0, limited as the settings say, and that x_0. level: one number."""
    config, level = objective.config, jnp.full((x.shape[0],), level)
    x_0 = objective.predicted_x_0(x, level, prediction)
    limits = config.clip, config.clip_percentile, config.clip_range, config.clip_max, config.data_range
    x_0 = threshold(x_0, *limits)
    return objective.slope(x, level, x_0), x_0


def euler_step(
    objective: Continuous,
    levels: Array,
    predict: Callable,
    x: Images,
    prediction: Images,
    i: Array,
    noise: None,
    history: tuple[Images] | None = None,
) -> Images | tuple[Images, tuple[Images]]:
    """Euler's method, of first order."""
    d, x_0 = slope(objective, x, levels[i + 1], prediction)
    x = x + (levels[i] - levels[i + 1]) * d
    return x if history is None else (x, (x_0,))


def heun_step(
    objective: Continuous,
    levels: Array,
    predict: Callable,
    x: Images,
    prediction: Images,
    i: Array,
    noise: None,
    history: tuple[Images] | None = None,
) -> Images | tuple[Images, tuple[Images]]:
    """Heun's method, of second order: Karras et al. 2022, Algorithm 1. The last step, to level 0, is Euler's."""
    level, next_level = levels[i + 1], levels[i]
    h = next_level - level
    d, x_0 = slope(objective, x, level, prediction)  # line 4
    x_next = x + h * d  # line 5

    def corrected():
        prediction = predict(x_next, jnp.full((x.shape[0],), next_level), **given_x_0(x_0, history))
        d_next, x_0_next = slope(objective, x_next, next_level, prediction)  # line 7
        return x + h * (d + d_next) / 2, x_0_next  # line 8

    x, x_0 = jax.lax.cond(i > 0, corrected, lambda: (x_next, x_0))
    return x if history is None else (x, (x_0,))


def midpoint_step(
    objective: Continuous,
    levels: Array,
    predict: Callable,
    x: Images,
    prediction: Images,
    i: Array,
    noise: None,
    history: tuple[Images] | None = None,
) -> Images | tuple[Images, tuple[Images]]:
    """The midpoint method, of second order: the slope of the whole step is that in its middle."""
    level, next_level = levels[i + 1], levels[i]
    middle = (level + next_level) / 2
    d, x_0 = slope(objective, x, level, prediction)
    x_middle = x + (middle - level) * d
    prediction = predict(x_middle, jnp.full((x.shape[0],), middle), **given_x_0(x_0, history))
    d, x_0 = slope(objective, x_middle, middle, prediction)
    x = x + (next_level - level) * d
    return x if history is None else (x, (x_0,))


def given_x_0(x_0: Images, history: tuple | None) -> dict[str, Images]:
    """What the second call of the network in a step is given: the first x_0, with self-conditioning."""
    return {} if history is None else {"x_self_cond": x_0}
