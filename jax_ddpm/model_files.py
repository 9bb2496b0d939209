"""Files that hold a model: run folders, diffusers folders, .safetensors, and other people's .pt, .pth and .bin.

Nothing in a file is executed: safetensors holds data only, and .pt goes through torch's `weights_only` loader.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from safetensors.numpy import save_file

from jax_ddpm import diffusers_folder, unets, weights
from jax_ddpm.config import FORMAT_VERSION, DiffusionConfig, ModelInfo, Precision, from_json
from jax_ddpm.errors import UserError, one_of, require
from jax_ddpm.network_config import NetworkConfig
from jax_ddpm.presets import preset
from jax_ddpm.recognise import recognise
from jax_ddpm.weights import StateDict

MODEL_FILE = "model.safetensors"
METADATA_KEY = "jax_ddpm"
LARGEST = 2**20  # number in the settings of a network
KINDS = "a run folder, a diffusers folder, a .safetensors, a .pt, .pth or .bin"
PREFIXES = ("module.", "_orig_mod.", "network.", "model.")
HOLDERS = ("ema", "ema_model", "model_state_dict", "state_dict")  # the first that is there wins: EMA over raw weights


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
    one_of("precision", precision, Precision)
    values, info = read_model(path, image_size, **diffusion)
    network = unets.build(info.network, info.image_shape[2], jnp.bfloat16 if precision == "bfloat16" else None)
    weights.load_state_dict(network, values, np.float64 if precision == "float64" else np.float32)
    weights.to_device(network)
    return Model(network, info)


def read_model(path: str | os.PathLike, image_size: int | None = None, **diffusion) -> tuple[StateDict, ModelInfo]:
    """The arrays of a file under PyTorch names, and what is known of the model. See `load_model`."""
    values, info = read_file(path)
    given = {name: value for name, value in diffusion.items() if value is not None}
    if info is None:
        network, channels = recognise(values, str(path))
        size = preset(network.name).data.image_size
        info = ModelInfo(network=network, image_shape=(size, size, channels), diffusion=usual_diffusion(network))
    elif info.diffusion is None:
        info = replace(info, diffusion=usual_diffusion(info.network))
    else:
        refuse_contradictions(info.diffusion, given, path)
    info = replace(info, diffusion=replace(info.diffusion, **given))
    if image_size is not None:
        info = replace(info, image_shape=(image_size, image_size, info.image_shape[2]))
    info.diffusion.check()
    for size in info.image_shape[:2]:
        info.network.check(size, info.diffusion.timesteps)
    for name, value in asdict(info.network).items():  # what a hostile file says must not fill the memory
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int | float)]
        require(all(n <= LARGEST for n in numbers), name, value, f"expected at most {LARGEST}")
    weights.check_fit(unets.build(info.network, info.image_shape[2]), values)
    return values, info


def usual_diffusion(network: NetworkConfig) -> DiffusionConfig:
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


def refuse_contradictions(told: DiffusionConfig, given: dict, path: str | os.PathLike) -> None:
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
        if diffusers_folder.is_one(path):
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
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {one_line(error)}.") from None
    return understood(values, metadata.get(METADATA_KEY), path)


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
        plain = diffusers_folder.modern_name(re.sub(f"^({'|'.join(map(re.escape, PREFIXES))})+", "", name))
        if plain in stripped:
            raise UserError(f"{source} holds {plain} twice, under different names.")
        stripped[plain] = value
    return stripped


def check_output(path: str | os.PathLike, diffusers: bool = False) -> None:
    """UserError unless `convert_to` can write there; makes the folder."""
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


def convert_to(path: str | os.PathLike, values: StateDict, info: ModelInfo, diffusers: bool = False) -> Path:
    """Write a model as the path says (a folder gets a model.safetensors) and return the file.

    A .pt holds {"model_state_dict": PyTorch's state dict, "jax_ddpm": the metadata as JSON}. With `diffusers`, the path
    is a folder, for the package's UNet2DModel.from_pretrained and DDPMPipeline.from_pretrained; UserError for networks
    and settings that it does not know.
    """
    path = Path(path)
    if diffusers:
        settings = diffusers_folder.configs(info)
        weights_file = path / diffusers_folder.WEIGHTS[0]
        atomically(weights_file, lambda draft: save_file(values, draft, metadata={"format": "pt"}))
        for name, content in settings.items():
            text = json.dumps(content, indent=2) + "\n"
            atomically(path / name, lambda draft, text=text: draft.write_text(text))
        return weights_file
    if path.suffix in (".pt", ".pth"):
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        content = {"model_state_dict": tensors, METADATA_KEY: json.dumps(asdict(info))}
        atomically(path, lambda draft: torch.save(content, draft))
        return path
    path = path / MODEL_FILE if path.suffix == "" else path
    write_model(path, values, info)
    return path


def write_model(path: str | os.PathLike, values: StateDict, info: ModelInfo) -> None:
    """A .safetensors with metadata, whole or absent."""
    metadata = {METADATA_KEY: json.dumps(asdict(info))}
    atomically(Path(path), lambda draft: save_file(values, draft, metadata=metadata))


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside its place, then move it there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.touch()
        mode = draft.stat().st_mode  # as the user's umask has it; safetensors makes files that nobody else may read
        write(draft)
        draft.chmod(mode)
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def describe(info: ModelInfo, num_parameters: int) -> str:
    """One line that tells a model."""
    height, width, channels = info.image_shape
    d: DiffusionConfig = info.diffusion
    betas = f" {d.beta_start:g} to {d.beta_end:g}" if d.schedule == "linear" else ""
    settings = ", ".join(f"{key} {value}" for key, value in asdict(info.network).items() if key != "name")
    return (
        f"{info.network.name} ({settings}), {num_parameters:,} parameters, {height}x{width}x{channels}, "
        f"T = {d.timesteps}, {d.schedule}{betas}, predicts {d.objective}"
    )


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text[:160] + " ...") if len(text) > 160 else text.rstrip(".") or type(error).__name__
