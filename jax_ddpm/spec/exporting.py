"""What both frameworks need to export a sampler: checks of the file name and of the settings."""

import os
from pathlib import Path

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import BUILT_IN
from jax_ddpm.spec.registered import OBJECTIVES, SAMPLERS

STABLEHLO = ".stablehlo"
STEP_SUFFIXES = (".onnx", ".pt2")
GUIDANCE = "the exported file takes the weight of guidance as an argument; leave it out"


def check_export_path(path: str | os.PathLike, suffixes: tuple[str, ...], overwrite: bool = True) -> Path:
    """The path of the file to write, whose folder is created.

    Raises UserError for another ending, a path that cannot be written, and without `overwrite` for a file that exists.
    """
    path = Path(path)
    require(path.suffix in suffixes, "file name", path, f"expected one that ends in {' or '.join(suffixes)}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists.\nChoose another output, or add --overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be created ({error.strerror}).") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: expected a file name in a writable folder.")
    return path


def is_guidable(info: ModelInfo) -> bool:
    """Whether the model can be guided away from its prediction without a label."""
    return info.network.null_index is not None and info.network.label_width is None


def uses_own_code(info: ModelInfo, config: DiffusionConfig, sampler: SamplerConfig) -> bool:
    """Whether the network, the objective or the sampler is registered by the user."""
    return info.network.name not in BUILT_IN or config.objective in OBJECTIVES or sampler.sampler in SAMPLERS
