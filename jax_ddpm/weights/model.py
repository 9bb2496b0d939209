"""`load_model`, and the `Model` that it returns."""

import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import unets
from jax_ddpm.process import check_devices
from jax_ddpm.spec.errors import require, require_one_of
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.model_files import read_model
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.types import Precision
from jax_ddpm.weights.convert import load_state_dict, to_device


@dataclass(frozen=True)
class Model:
    """A network with its weights, and its metadata.

    model(x, t) is the network's prediction of x's shape, for x float32 (B, H, W, C) and t integers (B,) in [0, T), or
    one integer for all images. The range of t is not checked. If the network also predicts the variance, the prediction
    has twice the channels.
    """

    network: nnx.Module
    """The network as a Flax NNX module."""
    info: ModelInfo
    """Network settings, image shape and diffusion settings."""

    def __call__(self, x, t):
        """The network's prediction for x at the timesteps t. Raises UserError for a t of another shape or dtype."""
        t = jnp.asarray(t)
        require(jnp.issubdtype(t.dtype, jnp.integer), "dtype of t", t.dtype, "expected integers from 0 to T - 1")
        fits = t.shape == x.shape[:1] or t.shape in ((), (1,))
        require(fits, "shape of t", t.shape, f"expected {x.shape[:1]}, or one integer")
        return self.network(x, jnp.broadcast_to(t, x.shape[:1]))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.network, nnx.Param)))


def load_model(
    path: str | os.PathLike, image_size: ImageSize | None = None, precision: str = "float32", **diffusion
) -> Model:
    """Load a trained model.

    The network of a file without metadata is inferred from the names and shapes of its arrays. If a file has both EMA
    and raw weights, the EMA weights are loaded. No code from the file is executed.

    Args:
        path: a run folder, a diffusers folder, or a .safetensors, .pt, .pth or .bin file. The last three need PyTorch.
        image_size: height and width in pixels, such as (32, 48), or one integer for square images. Default: those in
            the file, else those of the network's preset.
        precision: "float32", "bfloat16" (of the activations only) or "float64" (of the parameters too; needs
            jax_enable_x64).
        diffusion: fields of `DiffusionConfig`. variance, clip and clip_percentile replace those in the file. The others
            must agree with the file, if it has diffusion settings. Settings that are neither given nor in the file are
            those of the network's preset.

    Raises:
        UserError: the file is not a model, its weights do not fit, or a setting is wrong or disagrees with the file.
    """
    require_one_of("precision", precision, Precision)
    check_devices()
    values, info = read_model(path, image_size, **diffusion)
    network = unets.build(info.network, info.image_shape[2], jnp.bfloat16 if precision == "bfloat16" else None)
    load_state_dict(network, values, np.float64 if precision == "float64" else np.float32)
    to_device(network)
    return Model(network, info)
