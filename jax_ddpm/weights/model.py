"""`load_model`, and the `Model` that it returns."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import ops, unets
from jax_ddpm.objectives.discrete import by_timestep
from jax_ddpm.process import check_devices
from jax_ddpm.spec.errors import require, require_one_of
from jax_ddpm.spec.image_size import ImageSize
from jax_ddpm.spec.model_files import read_model
from jax_ddpm.spec.model_info import ModelInfo, describe
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.types import TF32_ON_CPUS, Precision
from jax_ddpm.spec.write_model import TORCH_ENDINGS, check_output, save_model
from jax_ddpm.weights.convert import array_shapes, load_state_dict, state_dict, to_device
from jax_ddpm.weights.run_checkpoint import read_checkpoint


@dataclass(frozen=True)
class Model:
    """A network with its weights, and its metadata.

    model(x, t) is the network's prediction of x's shape, for x float32 (B, H, W, C) and t integers (B,) in [0, T), or
    one integer for all images; the network gets from them what `DiffusionConfig.t_input` says. x has the values of
    `DiffusionConfig.data_range`. The range of t is not checked. If the network also predicts the variance, the
    prediction has twice the channels. A network with classes is called as model(x, t, labels): labels are integers
    (B,), or one integer for all images, and None is the null label. For the objectives edm and flow, x and
    the float t are those of `objectives.Continuous.network_input`.
    """

    network: nnx.Module
    """The network as a Flax NNX module."""
    info: ModelInfo
    """Network settings, image shape and diffusion settings."""

    def __call__(self, x: Any, t: Any, labels: Any = None) -> Any:
        """The network's prediction for x at the timesteps t. Raises UserError for another shape or dtype."""
        t = jnp.asarray(t)
        if self.info.diffusion.is_continuous:
            expected = f"expected floats, the network's time of the objective {self.info.diffusion.objective}"
            require(jnp.issubdtype(t.dtype, jnp.floating), "dtype of t", t.dtype, expected)
        else:
            require(jnp.issubdtype(t.dtype, jnp.integer), "dtype of t", t.dtype, "expected integers from 0 to T - 1")
        fits = t.shape == x.shape[:1] or t.shape in ((), (1,))
        require(fits, "shape of t", t.shape, f"expected {x.shape[:1]}, or one integer")
        t = jnp.broadcast_to(t, x.shape[:1])
        predict = by_timestep(self.network, self.info.diffusion)
        if labels is None:
            return predict(x, t)
        labels = jnp.asarray(labels)
        return predict(x, t, labels if labels.ndim else jnp.broadcast_to(labels, x.shape[:1]))

    def __repr__(self) -> str:
        return f"Model: {describe(self.info, self.num_parameters)}"

    def save(
        self, path: str | os.PathLike[str], *, original: bool = False, diffusers: bool = False, overwrite: bool = False
    ) -> Path:
        """Write the weights and the metadata, and return the path of the weights file. `load_model` reads it.

        Args:
            path: a .safetensors, .pt, .pth, .bin or .ckpt file, or a folder.
            original: for a .pt and the like: keys and names as in the checkpoint that the model was loaded from.
            diffusers: write a folder that diffusers' UNet2DModel reads; only for the network `ddpm`.
            overwrite: replace the weights of a run, and files that this package did not write.

        Raises:
            UserError: a path that cannot be written or should be kept, a network or settings that diffusers does not
                have, or `original` for a model that was not loaded from somebody's checkpoint.
        """
        layout = self.info.layout if original else None
        if original:
            expected = f"the original names are for a {', '.join(TORCH_ENDINGS)} file"
            require(not diffusers and Path(path).suffix in TORCH_ENDINGS, "path", path, expected)
            expected = "expected a model that was loaded from somebody's checkpoint; leave original out"
            require(layout is not None, "original", original, expected)
        check_output(path, diffusers, overwrite)
        return save_model(path, state_dict(self.network), self.info, diffusers, layout)

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.network, nnx.Param)))


def load_model(
    path: str | os.PathLike[str],
    image_size: ImageSize | None = None,
    precision: str = "float32",
    *,
    weights: str | None = None,
    step: int | None = None,
    ema_width: float | None = None,
    network: NetworkConfig | None = None,
    network_settings: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
    **diffusion: Any,
) -> Model:
    """Load a trained model.

    The file's content decides what it is, not its name. In a file without our metadata the weights are searched for:
    they may lie under any keys, and their names may have any prefix. The network is recognised from names and shapes. A
    registered network of your own is recognised if it has its default settings, or those given. No code from the file
    is executed.

    Args:
        path: a run folder, one of its checkpoints (RUN/checkpoints/STEP), a diffusers folder, a file of safetensors or
            PyTorch, or the name of a model on the Hugging Face Hub.
        image_size: height and width in pixels, such as (32, 48), or one integer for square images. Default: those in
            the file, else those of the network's preset.
        precision: "float32", "tf32" (of products on GPUs; three bfloat16 passes on TPUs; float32 on CPUs), "bfloat16"
            (of the activations only) or "float64" (of the parameters too; needs jax_enable_x64).
        weights: "ema" or "raw", for models that have both. Default: EMA weights where there are some. The raw weights
            of a run are those of its newest checkpoint.
        step: for a run, the checkpoint to load.
        ema_width: for a run that was trained with power_ema, the width of the average to load, such as 0.05. It is
            combined from the snapshots of the run up to `step`, or up to the newest.
        network: settings of the network in a file without our metadata, such as MyConfig(width=32), if it shall not be
            recognised. The network must be registered. Names and shapes must match exactly.
        network_settings: settings of the network that shapes do not show, such as {"heads": 4}.
        log: called with each line that says what was taken from a file and what was assumed.
        diffusion: fields of `DiffusionConfig`. Those that only concern sampling (variance, clip, ...) replace those in
            the file. The others must agree with the file, if it has diffusion settings. Settings that are neither given
            nor in the file are those of the network's preset.

    Raises:
        UserError: the file is not a model, its weights do not fit, or a setting is wrong or disagrees with the file.
    """
    require_one_of("precision", precision, Precision)
    check_devices()
    values, info = read_model(
        path,
        image_size,
        weights=weights,
        step=step,
        ema_width=ema_width,
        network=network,
        network_settings=network_settings,
        shapes_of=array_shapes,
        read_checkpoint=read_checkpoint,
        log=log,
        **diffusion,
    )
    if precision == "tf32" and ops.platform() == "cpu":
        log(TF32_ON_CPUS)
    built = unets.build_in(precision, info.network, info.image_shape[2])
    load_state_dict(built, values, np.float64 if precision == "float64" else np.float32)
    to_device(built)
    return Model(built, info)
