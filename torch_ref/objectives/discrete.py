"""The objectives eps, x0 and v: T timesteps with the tables of a noise schedule."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from torch_ref import diffusion, rng
from torch_ref.dtypes import float_time
from torch_ref.layouts import numpy_dtype
from torch_ref.schedules import schedule_tables


def network_time(config: DiffusionConfig, x_t: Tensor, t: Tensor) -> Tensor:
    """What the network receives for the timesteps t, as `t_input` says. Fractions have the dtype of x_t."""
    if config.t_input == "index":
        return t
    if config.t_input == "from_one":
        return t + 1
    t = t.to(x_t.dtype)
    return float_time(t / config.timesteps if config.t_input == "fraction" else (t + 1) / config.timesteps)


def by_timestep(network: Callable, config: DiffusionConfig) -> Callable:
    """The network as (x_t, t, ...) -> prediction with integers t in [0, T), whatever it receives itself.

    The objectives edm and flow have a time of their own: for them, and for `t_input` index, the network itself.
    """
    if config.is_continuous or config.t_input == "index":
        return network
    return lambda x_t, t, *labels, **others: network(x_t, network_time(config, x_t, t), *labels, **others)


class Discrete:
    """An objective whose noise level is a timestep t in [0, T): int64 (B,)."""

    def __init__(self, config: DiffusionConfig, dtype=torch.float32):
        self.config, self.tables = config, schedule_tables(config, numpy_dtype(dtype))

    def draw_level(self, k: np.ndarray, batch_size: int) -> Tensor:
        """Uniform timesteps from the key of an address."""
        return rng.timesteps(k, batch_size, self.config.timesteps)

    def noised(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t for the given standard normal noise."""
        return diffusion.q_sample(self.tables, x_0, t, noise)

    def network_input(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The arguments of `by_timestep`'s function: x_t and t as they are."""
        return x_t, t

    def loss_per_image(self, predict, x_0: Tensor, t: Tensor, noise: Tensor, **settings) -> Tensor:
        """`diffusion.loss_per_image`. predict: the network. settings: `TrainingConfig.loss_settings`."""
        settings |= {"variance": self.config.variance, "data_range": self.config.data_range}
        predict = by_timestep(predict, self.config)
        return diffusion.loss_per_image(self.tables, self.config.objective, predict, x_0, t, noise, **settings)

    def loss(self, predict, x_0: Tensor, t: Tensor, noise: Tensor, **settings) -> Tensor:
        """The mean of `loss_per_image` over the batch."""
        return torch.mean(self.loss_per_image(predict, x_0, t, noise, **settings))

    def predicted_x_0(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """x_0 computed from the network's prediction."""
        prediction, _ = diffusion.split_prediction(prediction, x_t)
        return diffusion.predicted_x_0(self.tables, self.config.objective, x_t, t, prediction)
