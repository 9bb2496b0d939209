"""The objectives eps, x0 and v: T timesteps with the tables of a noise schedule."""

import numpy as np
import torch
from torch import Tensor

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from torch_ref import diffusion, rng
from torch_ref.layouts import numpy_dtype
from torch_ref.schedules import schedule_tables


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
        """The arguments of the network: x_t and t as they are."""
        return x_t, t

    def loss_per_image(self, predict, x_0: Tensor, t: Tensor, noise: Tensor, **settings) -> Tensor:
        """`diffusion.loss_per_image`. predict: the network. settings: `TrainingConfig.loss_settings`."""
        settings["variance"] = self.config.variance
        return diffusion.loss_per_image(self.tables, self.config.objective, predict, x_0, t, noise, **settings)

    def loss(self, predict, x_0: Tensor, t: Tensor, noise: Tensor, **settings) -> Tensor:
        """The mean of `loss_per_image` over the batch."""
        return torch.mean(self.loss_per_image(predict, x_0, t, noise, **settings))

    def predicted_x_0(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """x_0 computed from the network's prediction."""
        prediction, _ = diffusion.split_prediction(prediction, x_t)
        return diffusion.predicted_x_0(self.tables, self.config.objective, x_t, t, prediction)
