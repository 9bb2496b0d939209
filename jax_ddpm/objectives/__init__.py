"""What a network learns, and what its prediction says about x_0: one class for each kind of objective.

Trainer, validation, samplers and pictures ask an objective:

- `draw_level`: which noise levels does a batch get?
- `noised`, `network_input`: what is the noisy image, and what does the network see of it?
- `loss`: what should the network predict, and how much does an error count?
- `predicted_x_0`: which clean image does a prediction mean?

eps, x0 and v have T timesteps and the tables of a noise schedule (`Discrete`). edm (`EDM`) and flow (`Flow`) have any
noise level (`Continuous`), and are sampled by the solvers of `sampling.solvers`.
"""

import jax.numpy as jnp

from jax_ddpm.objectives.continuous import Continuous
from jax_ddpm.objectives.discrete import Discrete
from jax_ddpm.objectives.edm import EDM
from jax_ddpm.objectives.flow import Flow
from jax_ddpm.spec.diffusion_config import DiffusionConfig


def make_objective(config: DiffusionConfig, dtype=jnp.float32) -> Discrete | Continuous:
    """The objective of the settings. dtype: of the tables of a noise schedule, or of the noise levels."""
    return {"edm": EDM, "flow": Flow}.get(config.objective, Discrete)(config, dtype)
