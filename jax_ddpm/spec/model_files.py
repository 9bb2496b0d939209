"""Read files that hold a model: run folders, diffusers folders, .safetensors, and other people's .pt, .pth and .bin.

Nothing in a file is executed: safetensors holds data only, and .pt files are read by torch's `weights_only` loader.
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
from jax_ddpm.spec.infer_network import infer_network
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.model_info import FORMAT_VERSION, ModelInfo
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.presets import preset
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.types import StateDict

MODEL_FILE = "model.safetensors"
METADATA_KEY = "jax_ddpm"
LARGEST = 2**20  # number in the settings of a network
KINDS = "a run folder, a diffusers folder, a .safetensors, a .pt, .pth or .bin"
PREFIXES = ("module.", "_orig_mod.", "network.", "model.")
HOLDERS = ("ema", "ema_model", "model_state_dict", "state_dict")  # the first that is there wins: EMA over raw weights


def read_model(path: str | os.PathLike, image_size: int | None = None, **diffusion) -> tuple[StateDict, ModelInfo]:
    """The arrays of a file under PyTorch names, and what is known of the model, for `load_model` of both frameworks.

    Whether the arrays fit the network is for the caller to check. Raises UserError for a file that is no model, and for
    settings that contradict it.
    """
    values, info = read_file(path)
    given = {name: value for name, value in diffusion.items() if value is not None}
    if info is None:
        network, channels = infer_network(values, str(path))
        size = preset(network.name).data.image_size
        info = ModelInfo(network=network, image_shape=(size, size, channels), diffusion=default_diffusion(network))
    elif info.diffusion is None:
        info = replace(info, diffusion=default_diffusion(info.network))
    else:
        require_no_conflict(info.diffusion, given, path)
    info = replace(info, diffusion=replace(info.diffusion, **given))
    if image_size is not None:
        info = replace(info, image_shape=(image_size, image_size, info.image_shape[2]))
    info.diffusion.check()
    for size in info.image_shape[:2]:
        info.network.check(size, info.diffusion.timesteps)
    for name, value in asdict(info.network).items():  # what a hostile file says must not fill the memory
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int | float)]
        require(all(n <= LARGEST for n in numbers), name, value, f"expected at most {LARGEST}")
    return values, info


def default_diffusion(network: NetworkConfig) -> DiffusionConfig:
    """What a network was trained with where its file does not tell: as its preset, or with the variance it predicts."""
    diffusion = preset(network.name).diffusion
    return replace(diffusion, variance="learned_range") if getattr(network, "learned_variance", False) else diffusion


def initial_weights(path: str | os.PathLike, network: NetworkConfig) -> StateDict:
    """The arrays of a file to start a training of `network` from. UserError where the file tells of another network."""
    values, info = read_file(path)
    told, wanted = asdict(network if info is None else info.network), asdict(network)
    wrong = [
        f"{name} {told.get(name)} instead of {value}"
        for name, value in wanted.items()
        if name != "dropout" and told.get(name) != value
    ]
    if wrong:
        raise UserError(f"{path} holds another network than this run's: {', '.join(wrong[:3])}.")
    return values


def require_no_conflict(told: DiffusionConfig, given: dict, path: str | os.PathLike) -> None:
    """UserError where something other than the way of sampling is given and the file says another thing."""
    wrong = [
        f"{name} = {value} was given, but it was trained with {getattr(told, name)}"
        for name, value in given.items()
        if name not in ("variance", "clip", "clip_percentile") and value != getattr(told, name)
    ]
    if wrong:
        raise UserError(f"{path} tells how it was trained: {'; '.join(wrong)}. Leave this out.")


def read_file(path: str | os.PathLike) -> tuple[StateDict, ModelInfo | None]:
    """A file's state dict, prefixes stripped, and what it tells of the model: all, or None.

    The `diffusion` is None of a diffusers folder that has no scheduler.
    """
    path = Path(path)
    if path.is_dir() and not (path / MODEL_FILE).is_file():
        if diffusers_folder.is_diffusers_folder(path):
            return read_diffusers(path)
        raise UserError(f"{path} holds no {MODEL_FILE}, which a run writes with its checkpoints: expected {KINDS}.")
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path} does not exist: expected {KINDS}.")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return read_pickle(path)
    raise UserError(f"{path} is no model: expected {KINDS}.")


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
    return understood(values, metadata.get(METADATA_KEY), path)


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
    """A model of the diffusers package; a folder that does not tell the image size has that of the DDPM paper."""
    folder = diffusers_folder.read(path)
    read = read_safetensors if folder.weights.suffix == ".safetensors" else read_pickle
    values, _ = read(folder.weights)
    height, width = folder.image_size or 2 * (preset(folder.network.name).data.image_size,)
    shape = (height, width, folder.image_channels)
    return values, ModelInfo(network=folder.network, image_shape=shape, diffusion=folder.diffusion)


def understood(
    values: Mapping[str, np.ndarray], metadata: str | None, path: Path
) -> tuple[StateDict, ModelInfo | None]:
    """Arrays as they are, and their metadata, where that is ours; else arrays without prefixes, and None."""
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
    """The state dict of a .pt or .pth, bare or under a usual name, as NumPy arrays; our metadata where it has it."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} needs PyTorch to be read: pip install 'jax-ddpm[torch]', or convert it to .safetensors."
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile pickle raises, it is not a model
        code = re.search(r"(?:GLOBAL|function) ([\w.]+)", str(error))
        why = f"it asks for {code[1]}, and only plain tensors are loaded" if code else "it is damaged or something else"
        raise UserError(f"{path} cannot be read as a PyTorch checkpoint: {why}.") from None
    metadata = content.get(METADATA_KEY) if isinstance(content, Mapping) else None
    for holder in HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(holder), Mapping):
            content = content[holder]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}: expected a state dict.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    values = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        for name, value in tensors.items()
    }
    return understood(values, metadata, path)


def strip_prefixes(values: Mapping[str, np.ndarray], source: str) -> StateDict:
    """Without the prefixes that wrappers put before every name; of an EMA wrapper only its average."""
    if any(name.startswith("ema_model.") for name in values):
        values = {name.removeprefix("ema_model."): v for name, v in values.items() if name.startswith("ema_model.")}
    stripped: StateDict = {}
    for name, value in values.items():
        plain = diffusers_folder.current_name(re.sub(f"^({'|'.join(map(re.escape, PREFIXES))})+", "", name))
        if plain in stripped:
            raise UserError(f"{source} holds {plain} twice, under different names.")
        stripped[plain] = value
    return stripped
