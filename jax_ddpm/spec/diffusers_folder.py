"""Model folders of the diffusers package: read their settings, and convert ours to theirs.

A folder contains a UNet2DModel (config.json and weights) or a pipeline: model_index.json, and the model and the
scheduler in the same folder or in unet/ and scheduler/.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_ddpm.spec.diffusers_network import read_network, write_network
from jax_ddpm.spec.diffusers_scheduler import read_diffusion, write_diffusion
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.json_text import read_object, require_supported
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.network_config import DDPMConfig

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
FLAX_WEIGHTS = "diffusion_flax_model.msgpack"
MODEL_FOLDERS = ("unet_ema", "unet")  # of a pipeline, or of a checkpoint of diffusers' training scripts
OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Folder:
    """Settings in a diffusers folder."""

    network: DDPMConfig
    image_channels: int
    image_size: tuple[int, int] | None
    """(H, W), or None if config.json has no sample_size."""
    diffusion: DiffusionConfig | None
    """None if there is no scheduler."""
    notes: tuple[str, ...]
    """Lines that say what was taken from the folder in another way than diffusers takes it."""
    class_names: tuple[str, ...] | None
    """Names of the classes, if this package wrote the folder."""

    @property
    def told(self) -> dict[str, Any]:
        """The network's settings that the folder tells. Only this package's folders tell of a null label."""
        settings = self.network.arguments
        return settings if self.network.null_label else {k: v for k, v in settings.items() if k != "null_label"}


def is_diffusers_folder(folder: Path) -> bool:
    """Whether the folder has an index, a model folder, settings or weights of diffusers."""
    names = (INDEX, *WEIGHTS, FLAX_WEIGHTS, *(f"{name}/config.json" for name in MODEL_FOLDERS))
    return any((folder / name).is_file() for name in names) or class_name(folder) is not None


def class_name(folder: Path) -> str | None:
    """The class of diffusers that a folder's config.json names; None if there is none."""
    try:
        return read_object(folder / "config.json").get("_class_name")
    except UserError:
        return None


def refuse_other_models(folder: Path) -> None:
    """Raise UserError that names the model of a folder, if it is one of diffusers or transformers but no UNet2DModel.

    Folders without settings of these packages are accepted.
    """
    if (folder / INDEX).is_file():
        index = read_object(folder / INDEX)
        parts = [name for name in index if not name.startswith("_")]
        if not set(parts) <= {"unet", "scheduler"}:
            raise UserError(
                f"{folder} is a pipeline of {', '.join(parts)} ({index.get('_class_name')}): "
                "expected only unet and scheduler, a pipeline of unconditional images."
            )
    model = model_folder(folder)
    config = read_object(model / "config.json") if (model / "config.json").is_file() else {}
    if "_class_name" in config:
        require_supported(model / "config.json", {"_class_name": ("UNet2DModel",)}, config)
    elif "architectures" in config or "model_type" in config:
        name = config.get("architectures") or config.get("model_type")
        raise UserError(f"{folder} is a model of transformers, {name}: expected a UNet2DModel of diffusers.")
    if (model / FLAX_WEIGHTS).is_file() and not any((model / name).is_file() for name in WEIGHTS):
        raise UserError(
            f"{model} has only Flax weights of diffusers, {FLAX_WEIGHTS}: its Flax classes had no unconditional UNet.\n"
            f"Expected a UNet2DModel with {' or '.join(WEIGHTS)}."
        )


def model_folder(folder: Path) -> Path:
    """The folder with the model: `folder`, or its unet/, or its unet_ema/ if there is no unet/."""
    return next((folder / name for name in reversed(MODEL_FOLDERS) if (folder / name).is_dir()), folder)


def read_folder(folder: Path, model: Path) -> Folder:
    """The settings in a folder. model: the folder with the model itself.

    Raises UserError that names what is missing, damaged or not supported by `ddpm`.
    """
    network, channels, size, class_names = read_network(model / "config.json")
    schedulers = (folder / "scheduler" / SCHEDULER, folder / SCHEDULER)
    diffusion, notes = next((read_diffusion(path) for path in schedulers if path.is_file()), (None, []))
    return Folder(network, channels, size, diffusion, tuple(notes), class_names)


def settings_beside(file: Path) -> Folder | None:
    """The settings beside a file of weights; None if its folder has no config.json of a UNet2DModel."""
    return read_folder(file.parent, file.parent) if class_name(file.parent) == "UNet2DModel" else None


def current_name(name: str) -> str:
    """Rename an attention parameter of an old diffusers file to its current name. Other names stay as they are."""
    old = rf"(\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION_NAMES)})\."
    return re.sub(old, lambda match: f"{match[1]}.{OLD_ATTENTION_NAMES[match[2]]}.", name)


def to_diffusers(info: ModelInfo) -> dict[str, dict]:
    """The JSON files of a folder, name to content, that diffusers loads as a model and as a pipeline.

    Raises UserError for settings that diffusers does not have.
    """
    if not isinstance(info.network, DDPMConfig):
        raise UserError(f"Only ddpm can be written as a diffusers folder, not {info.network.name}.")
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    return {"config.json": write_network(info), SCHEDULER: write_diffusion(info.diffusion), INDEX: index}
