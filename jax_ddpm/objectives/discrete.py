"""The objectives eps, x0 and v: T timesteps with the tables of a noise schedule."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Real

from jax_ddpm import diffusion, rng
from jax_ddpm.arrays import Array
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig

Images = Float[Array, "b h w c"]
Timesteps = Int[Array, "b"]


def network_time(config: DiffusionConfig, x_t: Images, t: Timesteps) -> Real[Array, "b"]:
    """What the network receives for the timesteps t, as `t_input` says. Fractions have the dtype of x_t."""
    if config.t_input == "index":
        return t
    if config.t_input == "from_one":
        return t + 1
    t = t.astype(x_t.dtype)
    return t / config.timesteps if config.t_input == "fraction" else (t + 1) / config.timesteps


def by_timestep(network: Callable, config: DiffusionConfig) -> Callable:
    """The network as (x_t, t, ...) -> prediction with integers t in [0, T), whatever it receives itself.

    The objectives edm and flow have a time of their own: for them, and for `t_input` index, the network itself.
    """
    if config.is_continuous or config.t_input == "index":
        return network
    return lambda x_t, t, *labels, **others: network(x_t, network_time(config, x_t, t), *labels, **others)


class Discrete:
    """An objective whose noise level is a timestep t in [0, T): int32 (B,)."""

    def __init__(self, config: DiffusionConfig, dtype=jnp.float32):
        self.config, self.tables = config, schedule_tables(config, dtype)

    def draw_level(self, k: jax.Array, batch_size: int) -> Timesteps:
        """Uniform timesteps from the key of an address."""
        return rng.timesteps(k, batch_size, self.config.timesteps)

    def noised(self, x_0: Images, t: Timesteps, noise: Images) -> Images:
        """x_t for the given standard normal noise."""
        return diffusion.q_sample(self.tables, x_0, t, noise)

    def network_input(self, x_t: Images, t: Timesteps) -> tuple[Images, Timesteps]:
        """The arguments of `by_timestep`'s function: x_t and t as they are."""
        return x_t, t

    def loss_per_image(self, predict, x_0: Images, t: Timesteps, noise: Images, **settings) -> Float[Array, "b"]:
        """`diffusion.loss_per_image`. predict: the network. settings: `TrainingConfig.loss_settings`."""
        settings |= {"variance": self.config.variance, "data_range": self.config.data_range}
        predict = by_timestep(predict, self.config)
        return diffusion.loss_per_image(self.tables, self.config.objective, predict, x_0, t, noise, **settings)

    def loss(self, predict, x_0: Images, t: Timesteps, noise: Images, **settings) -> Float[Array, ""]:
        """The mean of `loss_per_image` over the batch."""
        return jnp.mean(self.loss_per_image(predict, x_0, t, noise, **settings))

    def predicted_x_0(self, x_t: Images, t: Timesteps, prediction: Float[Array, "b h w p"]) -> Images:
        """x_0 computed from the network's prediction."""
        prediction, _ = diffusion.split_prediction(prediction, x_t)
        return diffusion.predicted_x_0(self.tables, self.config.objective, x_t, t, prediction)
