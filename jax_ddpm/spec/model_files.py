"""Read model files: run folders, diffusers folders, .safetensors, and PyTorch checkpoints (.pt, .pth, .bin).

No code from a file is executed: safetensors contains only data, and PyTorch files are read with `weights_only=True`.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import safetensors

from jax_ddpm.spec import diffusers_folder
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.image_size import ImageSize, height_and_width, shortest
from jax_ddpm.spec.infer_network import infer_network
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.model_info import FORMAT_VERSION, ModelInfo
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.presets import preset
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.types import StateDict

MODEL_FILE = "model.safetensors"
METADATA_KEY = "jax_ddpm"
MAX_SETTING = 2**20  # largest number accepted in a file's network settings: others could fill the memory
EXPECTED = "a run folder, a diffusers folder, or a .safetensors, .pt, .pth or .bin file"
PREFIXES = ("module.", "_orig_mod.", "network.", "model.")
STATE_DICT_KEYS = ("ema", "ema_model", "model_state_dict", "state_dict")  # the first one found is read: EMA first


def read_model(
    path: str | os.PathLike, image_size: ImageSize | None = None, **diffusion
) -> tuple[StateDict, ModelInfo]:
    """The arrays of a model file, by PyTorch name, and its metadata. Used by `load_model` of both frameworks.

    Does not check whether the arrays fit the network. Raises UserError for a file that is not a model, and for settings
    in conflict with it.

    path: as in `jax_ddpm.load_model`. image_size: height and width, instead of those in the file. diffusion: fields of
    `DiffusionConfig`; None means not given.
    """
    values, info = read_file(path)
    given = {name: value for name, value in diffusion.items() if value is not None}
    if info is None:
        network, channels = infer_network(values, str(path))
        shape = (*height_and_width(preset(network.name).data.image_size), channels)
        info = ModelInfo(network=network, image_shape=shape, diffusion=default_diffusion(network))
    elif info.diffusion is None:
        info = replace(info, diffusion=default_diffusion(info.network))
    else:
        require_no_conflict(info.diffusion, given, path)
    info = replace(info, diffusion=replace(info.diffusion, **given))
    if image_size is not None:
        info = replace(info, image_shape=(*height_and_width(image_size), info.image_shape[2]))
    info.diffusion.check()
    info.network.check(shortest(info.image_shape[:2]), info.diffusion.timesteps)
    for name, value in asdict(info.network).items():
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int | float)]
        require(all(n <= MAX_SETTING for n in numbers), name, value, f"expected at most {MAX_SETTING}")
    return values, info


def default_diffusion(network: NetworkConfig) -> DiffusionConfig:
    """Diffusion settings for a file that has none: those of the network's preset.

    If the network predicts a variance, `variance` is learned_range.
    """
    diffusion = preset(network.name).diffusion
    return replace(diffusion, variance="learned_range") if getattr(network, "learned_variance", False) else diffusion


def initial_weights(path: str | os.PathLike, network: NetworkConfig) -> StateDict:
    """The arrays of a model file from which to start training `network`. Raises UserError for another network."""
    values, info = read_file(path)
    stored, expected = asdict(network if info is None else info.network), asdict(network)
    wrong = [
        f"{name} = {stored.get(name)} (expected {value})"
        for name, value in expected.items()
        if name != "dropout" and stored.get(name) != value
    ]
    if wrong:
        raise UserError(f"{path} has another network than this run: {', '.join(wrong[:3])}.")
    return values


def require_no_conflict(stored: DiffusionConfig, given: dict, path: str | os.PathLike) -> None:
    """Raise UserError if a given training setting differs from the stored one. Sampling settings may differ."""
    wrong = [
        f"{name} = {value} was given, but the model was trained with {getattr(stored, name)}"
        for name, value in given.items()
        if name not in ("variance", "clip", "clip_percentile") and value != getattr(stored, name)
    ]
    if wrong:
        raise UserError(f"{path} does not fit these settings: {'; '.join(wrong)}. Leave them out.")


def read_file(path: str | os.PathLike) -> tuple[StateDict, ModelInfo | None]:
    """The state dict of a model file, without wrapper prefixes, and its metadata, or None if it has none.

    For a diffusers folder without a scheduler, the metadata's `diffusion` is None.
    """
    path = Path(path)
    if path.is_dir() and not (path / MODEL_FILE).is_file():
        if diffusers_folder.is_diffusers_folder(path):
            return read_diffusers(path)
        raise UserError(f"{path} has no {MODEL_FILE}, which a run writes with its checkpoints: expected {EXPECTED}.")
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path} does not exist: expected {EXPECTED}.")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return read_pickle(path)
    raise UserError(f"{path} is not a model file: expected {EXPECTED}.")


def read_safetensors(path: Path) -> tuple[StateDict, ModelInfo | None]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            values = {
                name: read_bfloat16(path, name) if dtype == "BF16" else file.get_tensor(name)
                for name, dtype in names.items()
            }
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {one_line(error)}.") from None
    return parse_metadata(values, metadata.get(METADATA_KEY), path)


def read_bfloat16(path: Path, name: str) -> np.ndarray:
    """One bfloat16 tensor of a .safetensors file as float32: NumPy has no bfloat16."""
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_size))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + header_size + start)
        bits = np.frombuffer(file.read(end - start), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])


def read_diffusers(path: Path) -> tuple[StateDict, ModelInfo]:
    """A model of the diffusers package. If the folder has no image size, it is that of the network's preset."""
    folder = diffusers_folder.read_folder(path)
    read = read_safetensors if folder.weights.suffix == ".safetensors" else read_pickle
    values, _ = read(folder.weights)
    size = folder.image_size or height_and_width(preset(folder.network.name).data.image_size)
    shape = (*size, folder.image_channels)
    return values, ModelInfo(network=folder.network, image_shape=shape, diffusion=folder.diffusion)


def parse_metadata(
    values: Mapping[str, np.ndarray], metadata: str | None, path: Path
) -> tuple[StateDict, ModelInfo | None]:
    """The arrays and the ModelInfo from our metadata (JSON).

    Without metadata: the arrays with prefixes removed from their names, and None.
    """
    if metadata is None:
        return strip_prefixes(values, str(path)), None
    try:
        version = json.loads(metadata)["format_version"]
    except (ValueError, KeyError, TypeError):
        version = None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}; expected version {FORMAT_VERSION}.")
    return dict(values), from_json(ModelInfo, metadata, f"The metadata of {path}")


def read_pickle(path: Path) -> tuple[StateDict, ModelInfo | None]:
    """The state dict of a .pt, .pth or .bin file as NumPy arrays, and our metadata if the file has it.

    The state dict is the file's content itself, or the value of one of STATE_DICT_KEYS in it.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"Reading {path} needs PyTorch: pip install 'jax-ddpm[torch]', or convert the file to .safetensors."
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        code = re.search(r"(?:GLOBAL|function) ([\w.]+)", str(error))
        why = f"it needs {code[1]}, but only tensors are loaded" if code else "it is damaged or not a checkpoint"
        raise UserError(f"{path} cannot be read as a PyTorch checkpoint: {why}.") from None
    metadata = content.get(METADATA_KEY) if isinstance(content, Mapping) else None
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{path} contains a {type(content).__name__}: expected a state dict.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    values = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        for name, value in tensors.items()
    }
    return parse_metadata(values, metadata, path)


def strip_prefixes(values: Mapping[str, np.ndarray], source: str) -> StateDict:
    """Remove the prefixes that wrappers add to names. From an EMA wrapper, keep only the averaged weights."""
    if any(name.startswith("ema_model.") for name in values):
        values = {name.removeprefix("ema_model."): v for name, v in values.items() if name.startswith("ema_model.")}
    stripped: StateDict = {}
    for name, value in values.items():
        plain = diffusers_folder.current_name(re.sub(f"^({'|'.join(map(re.escape, PREFIXES))})+", "", name))
        if plain in stripped:
            raise UserError(f"{source} has {plain} twice, under different names.")
        stripped[plain] = value
    return stripped
