"""A network with its weights, ready to be called."""

import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import unets
from jax_ddpm.spec.errors import require_one_of
from jax_ddpm.spec.model_files import read_model
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.types import Precision
from jax_ddpm.weights.convert import load_state_dict, to_device


@dataclass(frozen=True)
class Model:
    """A ready network and what is known of it: model(x, t), x float32 (B, H, W, C), t integers (B,) in [0, T)."""

    network: nnx.Module
    info: ModelInfo

    def __call__(self, x, t):
        return self.network(x, t)

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.network, nnx.Param)))


def load_model(
    path: str | os.PathLike, image_size: int | None = None, precision: str = "float32", **diffusion
) -> Model:
    """A model from a run folder, a diffusers folder, a .safetensors, a .pt, .pth or .bin.

    `variance`, `clip`, `clip_percentile` and `image_size` overrule what the file says. A file that says nothing takes
    what is not given, also the other fields of DiffusionConfig, from the preset of its network. precision: "float32",
    "bfloat16" (activations only) or "float64" (parameters too; wants jax_enable_x64). Raises UserError for a file that
    is no model or does not fit.
    """
    require_one_of("precision", precision, Precision)
    values, info = read_model(path, image_size, **diffusion)
    network = unets.build(info.network, info.image_shape[2], jnp.bfloat16 if precision == "bfloat16" else None)
    load_state_dict(network, values, np.float64 if precision == "float64" else np.float32)
    to_device(network)
    return Model(network, info)
