"""What a network learns, and what its prediction says about x_0: one class for each kind of objective.

Trainer, validation, samplers and pictures ask an objective:

- `draw_level`: which noise levels does a batch get?
- `noised`, `network_input`: what is the noisy image, and what does the network see of it?
- `loss`: what should the network predict, and how much does an error count?
- `predicted_x_0`: which clean image does a prediction mean?

eps, x0 and v have T timesteps and the tables of a noise schedule (`Discrete`). edm (`EDM`) and flow (`Flow`) have any
noise level (`Continuous`), and are sampled by the solvers of `sampling.solvers`.
"""

import torch

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from torch_ref.objectives.continuous import Continuous
from torch_ref.objectives.discrete import Discrete
from torch_ref.objectives.edm import EDM
from torch_ref.objectives.flow import Flow


def make_objective(config: DiffusionConfig, dtype=torch.float32) -> Discrete | Continuous:
    """The objective of the settings. dtype: of the tables of a noise schedule, or of the noise levels."""
    return {"edm": EDM, "flow": Flow}.get(config.objective, Discrete)(config, dtype)
