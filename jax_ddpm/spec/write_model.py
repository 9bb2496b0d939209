"""Write files that hold a model: .safetensors, .pt, .pth, diffusers folders."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors.numpy import save_file

from jax_ddpm.spec import diffusers_folder
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path, write_text
from jax_ddpm.spec.model_files import METADATA_KEY, MODEL_FILE
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.types import StateDict


def check_output(path: str | os.PathLike, diffusers: bool = False) -> None:
    """UserError unless `save_model` can write there; makes the folder."""
    path = Path(path)
    if diffusers and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} holds something already: a diffusers folder is written to a new or empty folder.")
    if not diffusers and path.suffix not in (".safetensors", ".pt", ".pth", ""):
        raise UserError(f"{path} ends in {path.suffix}: expected a .safetensors, a .pt, a .pth or a folder.")
    is_folder = diffusers or path.suffix == ""
    folder = path if is_folder else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}).") from None
    if not os.access(folder, os.W_OK) or (not is_folder and path.is_dir()):
        raise UserError(f"{path} cannot be written: expected the name of a file in a folder of yours.")


def save_model(path: str | os.PathLike, values: StateDict, info: ModelInfo, diffusers: bool = False) -> Path:
    """Write a model as the path says (a folder gets a model.safetensors) and return the file.

    A .pt holds {"model_state_dict": PyTorch's state dict, "jax_ddpm": the metadata as JSON}. With `diffusers`, the path
    is a folder, for the package's UNet2DModel.from_pretrained and DDPMPipeline.from_pretrained; UserError for networks
    and settings that it does not know.
    """
    path = Path(path)
    if diffusers:
        settings = diffusers_folder.configs(info)
        weights_file = path / diffusers_folder.WEIGHTS[0]
        with atomic_path(weights_file) as draft:
            save_file(values, draft, metadata={"format": "pt"})
        for name, content in settings.items():
            write_text(path / name, json.dumps(content, indent=2) + "\n")
        return weights_file
    if path.suffix in (".pt", ".pth"):
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        content = {"model_state_dict": tensors, METADATA_KEY: json.dumps(asdict(info))}
        with atomic_path(path) as draft:
            torch.save(content, draft)
        return path
    path = path / MODEL_FILE if path.suffix == "" else path
    write_model(path, values, info)
    return path


def write_model(path: str | os.PathLike, values: StateDict, info: ModelInfo) -> None:
    """A .safetensors with metadata, whole or absent."""
    metadata = {METADATA_KEY: json.dumps(asdict(info))}
    with atomic_path(path) as draft:
        save_file(values, draft, metadata=metadata)
