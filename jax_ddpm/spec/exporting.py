"""What both frameworks need to export a sampler: checks of the file name and of the settings."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.labels import check_guidance, check_same_labels
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


def takes_weight(info: ModelInfo, guide: ModelInfo | None) -> bool:
    """Whether the file takes the weight of guidance: away from a guide, or from the prediction without a label."""
    return guide is not None or (info.network.null_index is not None and info.network.label_width is None)


def null_label(info: ModelInfo, guide: ModelInfo | None) -> int | None:
    """The label of the file that stands for none. None: there is none, or the guide does not know it."""
    knows = guide is None or not guide.network.takes_labels or guide.network.null_index is not None
    return info.network.null_index if knows and info.network.label_width is None else None


def check_export(info: ModelInfo, sampler: SamplerConfig, guide: ModelInfo | None) -> None:
    """Raise UserError for a weight of guidance, and for a guide of another kind than the model."""
    require(sampler.guidance == 1, "guidance", sampler.guidance, GUIDANCE)
    if guide is None:
        return
    check_guidance(info, replace(sampler, guidance=2.0), guide)
    if guide.network.takes_labels and info.network.takes_labels:
        check_same_labels(info, guide, np.zeros(1, int))


def uses_own_code(info: ModelInfo, config: DiffusionConfig, sampler: SamplerConfig, guide: ModelInfo | None) -> bool:
    """Whether a network, the objective or the sampler is registered by the user."""
    networks = {each.network.name for each in (info, guide) if each is not None}
    return not networks <= set(BUILT_IN) or config.objective in OBJECTIVES or sampler.sampler in SAMPLERS
