"""EDM: preconditioning, noise distribution and noise levels of Karras et al. 2022, table 1."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm import rng
from jax_ddpm.objectives.continuous import Continuous, Images, Levels, per_image


class EDM(Continuous):
    """x = x_0 + sigma noise. The level is sigma.

    The network F predicts a mixture of image and noise that has unit variance at every sigma:
    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) is the predicted x_0 (eq. 7).
    """

    def draw_level(self, k: jax.Array, batch_size: int) -> Levels:
        """ln(sigma) ~ N(P_mean, P_std^2)."""
        return jnp.exp(self.config.p_mean + self.config.p_std * rng.normal(k, (batch_size,), self.dtype))

    def signal_and_sigma(self, level: Levels) -> tuple[Levels, Levels]:
        """1 and sigma."""
        return level * 0 + 1, level

    def input_scale_and_time(self, level: Levels) -> tuple[Levels, Levels]:
        """c_in and c_noise."""
        return 1 / jnp.sqrt(level**2 + self.config.sigma_data**2), jnp.log(level) / 4

    def skip_scale(self, level: Levels) -> Levels:
        """c_skip."""
        sigma_data = self.config.sigma_data
        return sigma_data**2 / (level**2 + sigma_data**2)

    def output_scale(self, level: Levels) -> Levels:
        """c_out."""
        sigma_data = self.config.sigma_data
        return level * sigma_data / jnp.sqrt(level**2 + sigma_data**2)

    def target(self, x_0: Images, level: Levels, noise: Images) -> Images:
        """The F of eq. 8, (x_0 - c_skip x) / c_out, with sigma divided out.

        The loss weight lambda = 1 / c_out^2 of D's error is 1 for that of F.
        """
        sigma_data = self.config.sigma_data
        mixture = per_image(level) / sigma_data * x_0 - sigma_data * noise
        return mixture / per_image(jnp.sqrt(level**2 + sigma_data**2))

    def predicted_x_0(self, x: Images, level: Levels, prediction: Images) -> Images:
        """D(x; sigma): eq. 7."""
        return per_image(self.skip_scale(level)) * x + per_image(self.output_scale(level)) * prediction

    def slope(self, x: Images, level: Levels, x_0: Images) -> Images:
        """dx / dsigma = (x - D) / sigma: Algorithm 1, line 4."""
        return (x - x_0) / per_image(level)

    def levels(self, num_steps: int) -> np.ndarray:
        """Eq. 5, ascending: 0, then sigma_min to sigma_max, evenly spaced in sigma^(1 / rho)."""
        c = self.config
        low, high = c.sigma_min ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        roots = np.linspace(low, high, num_steps) if num_steps > 1 else np.array([high])
        return np.concatenate([[0.0], roots**c.rho])
