"""Write model files: safetensors, files of PyTorch, diffusers folders."""

import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax_ddpm.spec import diffusers_folder
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path, write_text
from jax_ddpm.spec.layout import Layout, apply_layout
from jax_ddpm.spec.model_files import METADATA_KEY, MODEL_FILE
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.types import StateDict

TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")


def check_output(path: str | os.PathLike, diffusers: bool = False, overwrite: bool = False) -> None:
    """Create the folder of `path`, and raise UserError unless `save_model` can write there.

    Without `overwrite`, the weights of a run and files that `save_model` did not write are an error, too.
    """
    path = Path(path)
    if diffusers and path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"{path} is not empty: a diffusers folder can only be written to a new or empty folder.")
    if not diffusers and path.suffix not in (".safetensors", *TORCH_ENDINGS, ""):
        endings = ", ".join((".safetensors", *TORCH_ENDINGS))
        raise UserError(f"{path} ends in {path.suffix}: expected a {endings} file, or a folder.")
    is_folder = diffusers or path.suffix == ""
    folder = path if is_folder else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}).") from None
    if not os.access(folder, os.W_OK) or (not is_folder and path.is_dir()):
        raise UserError(f"{path} cannot be written: expected a file name in a writable folder.")
    file = path / MODEL_FILE if is_folder else path
    if file.exists() and not overwrite and (problem := reason_to_keep(file)):
        raise UserError(f"{file} {problem}.\nChoose another output, or add --overwrite.")


def reason_to_keep(file: Path) -> str | None:
    """Why a file should not be replaced without asking; None for a converted model."""
    if file.name == MODEL_FILE and (file.parent / "config.json").exists():
        return "holds the weights of a run"
    return None if is_converted(file) else "exists, and was not written by this command"


def is_converted(file: Path) -> bool:
    """Whether a file has the metadata that `save_model` writes."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as opened:
                return METADATA_KEY in (opened.metadata() or {})
        with zipfile.ZipFile(file) as archive:
            pickle = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return METADATA_KEY.encode() in archive.read(pickle)
    except (OSError, ValueError, StopIteration, SafetensorError, zipfile.BadZipFile):
        return False


def save_model(
    path: str | os.PathLike,
    values: StateDict,
    info: ModelInfo,
    diffusers: bool = False,
    layout: Layout | None = None,
) -> Path:
    """Write a model in the format that the path's ending says, and return the path of the weights file.

    In a folder, the file is model.safetensors. A file of PyTorch contains a dict: "model_state_dict" is the state dict
    and "jax_ddpm" the metadata as JSON.

    Args:
        path: a .safetensors file, one that ends as in TORCH_ENDINGS, or a folder.
        values: arrays by PyTorch name.
        info: the metadata.
        diffusers: write a folder for UNet2DModel.from_pretrained and DDPMPipeline.from_pretrained of diffusers.
        layout: for a file of PyTorch: write the weights as the checkpoint with this layout has them, without metadata.

    Raises:
        UserError: a network or settings that diffusers does not have, or a file that cannot be written.
    """
    path = Path(path)
    try:
        if diffusers:
            return write_diffusers(path, values, info)
        if path.suffix in TORCH_ENDINGS:
            return write_torch(path, values, info, layout)
        path = path / MODEL_FILE if path.suffix == "" else path
        write_model(path, values, info)
        return path
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({getattr(error, 'strerror', None) or one_line(error)}).") from None


def write_diffusers(path: Path, values: StateDict, info: ModelInfo) -> Path:
    settings = diffusers_folder.to_diffusers(info)
    weights_file = path / diffusers_folder.WEIGHTS[0]
    with atomic_path(weights_file) as temporary:
        save_file(values, temporary, metadata={"format": "pt"})
    for name, content in settings.items():
        write_text(path / name, json.dumps(content, indent=2) + "\n")
    return weights_file


def write_torch(path: Path, values: StateDict, info: ModelInfo, layout: Layout | None) -> Path:
    try:
        import torch
    except ImportError:
        raise UserError(f"Writing {path} needs PyTorch: pip install 'jax-ddpm[torch]'.") from None

    if layout is None:
        content = {"model_state_dict": values, METADATA_KEY: json.dumps(asdict(info))}
    else:
        content = apply_layout(layout, values)

    def as_tensors(value):
        if isinstance(value, dict):
            return {key: as_tensors(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [as_tensors(entry) for entry in value]
        return torch.tensor(value) if isinstance(value, np.ndarray) else value

    with (
        atomic_path(path) as draft,
        open(draft, "wb") as file,
    ):  # for a path, torch raises no OSError if the disk is full
        torch.save(as_tensors(content), file)
    return path


def write_model(path: str | os.PathLike, values: StateDict, info: ModelInfo) -> None:
    """Write a .safetensors file with metadata, atomically."""
    metadata = {METADATA_KEY: json.dumps(asdict(info))}
    with atomic_path(path) as temporary:
        save_file(values, temporary, metadata=metadata)
