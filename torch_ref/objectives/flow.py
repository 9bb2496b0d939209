"""Flow matching on straight paths: Lipman et al. 2023 and Liu et al. 2023, with the times of Esser et al. 2024."""

import numpy as np
import torch
from torch import Tensor

from torch_ref import rng
from torch_ref.objectives.continuous import Continuous, per_image

TIME_SCALE = 1000  # the network's time at t = 1, for embeddings that are made for a thousand timesteps


class Flow(Continuous):
    """x = (1 - t) x_0 + t noise. The level is t, from 0 (image) to 1 (noise). The network predicts v = noise - x_0."""

    def draw_level(self, k: np.ndarray, batch_size: int) -> Tensor:
        """1 / (1 + exp(-u)), u ~ N(0, 1): logit-normal (Esser et al. 2024, section 3.1). Or uniform in [0, 1)."""
        if self.config.flow_time == "uniform":
            return rng.uniform(k, (batch_size,), self.dtype)
        return torch.sigmoid(rng.normal(k, (batch_size,), self.dtype))

    def signal_and_sigma(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """1 - t and t."""
        return 1 - level, level

    def input_scale_and_time(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """1 and 1000 t."""
        return level * 0 + 1, TIME_SCALE * level

    def target(self, x_0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """v = noise - x_0, which is dx / dt."""
        return noise - x_0

    def predicted_x_0(self, x: Tensor, level: Tensor, prediction: Tensor) -> Tensor:
        """x - t v."""
        return x - per_image(level) * prediction

    def output_scale(self, level: Tensor) -> Tensor:
        """t."""
        return level

    def slope(self, x: Tensor, level: Tensor, x_0: Tensor) -> Tensor:
        """dx / dt = v, computed from the predicted x_0, which may have been clipped."""
        return (x - x_0) / per_image(level)

    def levels(self, num_steps: int) -> np.ndarray:
        """Even times from 0 to 1."""
        return np.linspace(0, 1, num_steps + 1)
