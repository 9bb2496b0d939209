"""Flow matching on straight paths: Lipman et al. 2023 and Liu et al. 2023, with the times of Esser et al. 2024."""

import jax
import numpy as np

from jax_ddpm import rng
from jax_ddpm.objectives.continuous import Continuous, Images, Levels, per_image

TIME_SCALE = 1000  # the network's time at t = 1, for embeddings that are made for a thousand timesteps


class Flow(Continuous):
    """x = (1 - t) x_0 + t noise. The level is t, from 0 (image) to 1 (noise). The network predicts v = noise - x_0."""

    def draw_level(self, k: jax.Array, batch_size: int) -> Levels:
        """1 / (1 + exp(-u)), u ~ N(0, 1): logit-normal (Esser et al. 2024, section 3.1). Or uniform in [0, 1)."""
        if self.config.flow_time == "uniform":
            return jax.random.uniform(k, (batch_size,), self.dtype)
        return jax.nn.sigmoid(rng.normal(k, (batch_size,), self.dtype))

    def signal_and_sigma(self, level: Levels) -> tuple[Levels, Levels]:
        """1 - t and t."""
        return 1 - level, level

    def input_scale_and_time(self, level: Levels) -> tuple[Levels, Levels]:
        """1 and 1000 t."""
        return level * 0 + 1, TIME_SCALE * level

    def target(self, x_0: Images, level: Levels, noise: Images) -> Images:
        """v = noise - x_0, which is dx / dt."""
        return noise - x_0

    def predicted_x_0(self, x: Images, level: Levels, prediction: Images) -> Images:
        """x - t v."""
        return x - per_image(level) * prediction

    def output_scale(self, level: Levels) -> Levels:
        """t."""
        return level

    def slope(self, x: Images, level: Levels, x_0: Images) -> Images:
        """dx / dt = v, computed from the predicted x_0, which may have been clipped."""
        return (x - x_0) / per_image(level)

    def levels(self, num_steps: int) -> np.ndarray:
        """Even times from 0 to 1."""
        return np.linspace(0, 1, num_steps + 1)
