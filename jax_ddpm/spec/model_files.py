"""Read model files: run folders, diffusers folders, files of safetensors and of PyTorch, whatever their names end in.

No code from a file is executed: safetensors contains only data, and pickles are read by `unpickle`.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.spec.adm_config import ADMConfig
from jax_ddpm.spec.assumptions import describe_assumptions
from jax_ddpm.spec.choose_weights import choose, describe_choice
from jax_ddpm.spec.diffusers_folder import Folder
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.ema_snapshots import describe_average, find_average, read_average
from jax_ddpm.spec.errors import UserError, require_one_of, users_words
from jax_ddpm.spec.file_content import FileContent
from jax_ddpm.spec.find_weights import Found, ShapesOf, find_weights
from jax_ddpm.spec.flat_settings import check_names, plain_value
from jax_ddpm.spec.hub import local_path
from jax_ddpm.spec.image_size import ImageSize, height_and_width, shortest
from jax_ddpm.spec.infer_network import check_size
from jax_ddpm.spec.inputs import check_path
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.layout import Layout
from jax_ddpm.spec.lucidrains_config import same_network_as
from jax_ddpm.spec.model_folder import MODEL_FILE, find_source
from jax_ddpm.spec.model_info import FORMAT_VERSION, ModelInfo
from jax_ddpm.spec.network_config import BUILT_IN, NETWORKS, NetworkConfig
from jax_ddpm.spec.own_networks import check_registered, recorded_imports
from jax_ddpm.spec.published import Published, published
from jax_ddpm.spec.read_content import EXPECTED, METADATA_KEY, open_model, read_arrays
from jax_ddpm.spec.recognise_adm import refuse_latent_diffusion
from jax_ddpm.spec.record_layout import record_layout
from jax_ddpm.spec.run_checkpoints import Checkpoint, averages_weights, check_own_weights, find_checkpoint, steps_of
from jax_ddpm.spec.run_config import check_time
from jax_ddpm.spec.text import printable
from jax_ddpm.spec.types import StateDict, Weights
from jax_ddpm.spec.usual_settings import told_by_tables, usual_diffusion, usual_size

__all__ = ["METADATA_KEY", "MODEL_FILE", "initial_weights", "read_file", "read_model"]

SAMPLING_SETTINGS = (  # may differ from the file's
    *("variance", "clip", "clip_percentile", "clip_range", "clip_max", "sigma_min", "sigma_max", "rho"),
)
ReadCheckpoint = Callable[[Checkpoint], tuple[StateDict, ModelInfo]]


@dataclass(frozen=True)
class Loaded:
    """Weights of a model, and what is known about it."""

    values: StateDict
    network: NetworkConfig
    image_channels: int
    image_size: tuple[int, int] | None
    diffusion: DiffusionConfig | None
    step: int | None = None
    assumed: tuple[str, ...] = ()
    """Names of the network's settings that are not known."""
    found: Found | None = None
    """Where the weights were, in a file without our metadata."""
    content: FileContent | None = None
    """The content of such a file."""
    layout: Layout | None = None
    """How such a file was built, also if it was converted since."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, if they are known."""
    published: Published | None = None
    """The published model whose file has this name and these shapes, if there is one."""


def read_model(
    path: str | os.PathLike,
    image_size: ImageSize | None = None,
    *,
    weights: Weights | None = None,
    step: int | None = None,
    ema_width: float | None = None,
    network: NetworkConfig | None = None,
    network_settings: Mapping[str, Any] | None = None,
    shapes_of: ShapesOf | None = None,
    read_checkpoint: ReadCheckpoint | None = None,
    log: Callable[[str], None] = print,
    **diffusion,
) -> tuple[StateDict, ModelInfo]:
    """The arrays of a model file, by PyTorch name, and its metadata. Used by `load_model` of both frameworks.

    Raises UserError for a file that is not a model, and for settings in conflict with it.

    Args:
        path, image_size, weights, step, ema_width, network, network_settings, log: as in `jax_ddpm.load_model`.
        shapes_of: the names and shapes of a network's arrays. Without it, arrays of files without our metadata are not
            compared with those of the network.
        read_checkpoint: reads a checkpoint of a run. Without it, checkpoints are refused.
        diffusion: fields of `DiffusionConfig`; None means not given.
    """
    check_names(diffusion, [field.name for field in fields(DiffusionConfig)], {"ema": "weights='ema' or 'raw'"})
    given = {name: plain_value(value) for name, value in diffusion.items() if value is not None}
    if weights is not None:
        require_one_of("weights", weights, Weights)
    if network is not None:
        check_registered(network)
    check_path("path", path, "expected the path of a model")
    path = local_path(path, log)
    settings = dict(network_settings or {})
    if ema_width is not None:
        average = find_average(path, ema_width, step, weights)
        values, metadata = read_average(average)
        info = parse_metadata(metadata, average.snapshots[-1].path)
        log(describe_average(average))
        loaded = loaded_with(values, info, settings, path)
    else:
        loaded = load(path, weights, step, settings, None, shapes_of, read_checkpoint, log, network)
    if network is not None:
        require_network(loaded.network, network, path, "the one that was given")
    if loaded.diffusion is not None:
        require_no_conflict(loaded.diffusion, given, path)
    known_size = loaded.image_size if image_size is None else image_size
    size = height_and_width(usual_size(loaded.network, loaded.published) if known_size is None else known_size)
    usual, known = usual_diffusion(loaded.network, loaded.published), given
    if loaded.content is not None and loaded.diffusion is None:
        sentence, told = told_by_tables(loaded.network, loaded.content, given, usual.timesteps)
        known = {**told, **given}
        if sentence:
            log(printable(users_words(sentence)))
    info = ModelInfo(
        network=loaded.network,
        image_shape=(*size, loaded.image_channels),
        diffusion=replace(loaded.diffusion or usual, **known),
        step=loaded.step,
        layout=loaded.layout,
        class_names=loaded.class_names,
    )
    info.diffusion.check()
    info.network.check(shortest(size), info.diffusion.timesteps)
    check_time(info.network, info.diffusion)
    check_size(info.network)
    if loaded.found is not None:
        line = describe_assumptions(info, loaded.assumed, known_size is not None, None if loaded.diffusion else known)
        if line is not None:
            log(line)
    return loaded.values, info


def tells_diffusion(path: str | os.PathLike, weights: Weights | None = None) -> bool:
    """Whether a model that can be loaded says its diffusion settings itself: in its metadata, its run or its folder."""
    path = local_path(path, lambda line: None)
    if find_checkpoint(path, weights, None) is not None:
        return True
    source = find_source(path, weights)
    in_folder = source.folder is not None and source.folder.diffusion is not None
    return in_folder or open_model(source.file).metadata is not None


def read_file(path: str | os.PathLike) -> tuple[StateDict, ModelInfo]:
    """The arrays and the metadata of a file, without a word about what was taken and assumed."""
    return read_model(path, log=lambda line: None)


def load(
    path: Path,
    weights: Weights | None,
    step: int | None,
    settings: dict[str, Any],
    supposed: NetworkConfig | None,
    shapes_of: ShapesOf | None,
    read_checkpoint: ReadCheckpoint | None,
    log: Callable[[str], None],
    given: NetworkConfig | None = None,
) -> Loaded:
    """The weights, and what the file and its folder tell.

    settings: of the network, given by the user. supposed: has the settings that nobody tells. given: the network to
    look for in a file without our metadata.
    """
    checkpoint = find_checkpoint(path, weights, step)
    if checkpoint is not None:
        if read_checkpoint is None:
            raise UserError(f"{checkpoint.folder} is a checkpoint of a run: expected {EXPECTED}.")
        values, info = read_checkpoint(checkpoint)
        log(f"Took the {'EMA' if checkpoint.weights == 'ema' else 'raw'} weights of {checkpoint.folder}.")
        return loaded_with(values, info, settings, path)
    source = find_source(path, weights)
    file = open_model(source.file)
    if file.metadata is not None:
        check_own_weights(path, weights)
        info = parse_metadata(file.metadata, source.file)
        if weights is None and path.is_dir() and averages_weights(path) and steps_of(path):
            raw = "--weights raw (in Python: weights='raw')"
            log(users_words(f"Took the EMA weights in {source.file}. The newest checkpoint has the raw ones: {raw}."))
        return loaded_with(read_arrays(file.own_arrays, source.file), info, settings, path)
    folder = source.folder
    by_network = settings_by_network(supposed, folder, settings)
    version = same_network_as(file.version or "")
    if version is not None:
        by_network["lucidrains"] = {"package_version": version} | by_network["lucidrains"]
    found = find_weights(file.content, shapes_of, by_network, given)
    named = published(source.file)
    if named is not None and any(named.fits(each.recognised) for each in found):
        by_network[named.network.name] = named.proposed(settings) | by_network[named.network.name]
        found = find_weights(file.content, shapes_of, by_network, given)
    else:
        named = None
    chosen = choose(source.file, file.content, found, None if source.is_ema else weights, shapes_of, given)
    if isinstance(chosen.network, ADMConfig):
        refuse_latent_diffusion(file.content)
    known = dict(chosen.recognised.settings)
    if version is not None and chosen.network.name == "lucidrains":
        known = {"package_version": version} | known
    if chosen.recognised.label_rows is not None and hasattr(chosen.network, "num_classes"):
        known["num_classes"] = chosen.network.num_classes
    if folder is not None and (type(folder.network) is not type(chosen.network) or differing(folder.network, known)):
        if source.is_folder:
            what = differing(folder.network, known) or [f"the network is {chosen.network.name}"]
            raise UserError(f"{source.file} has another network than config.json says: {', '.join(what[:3])}.")
        log(f"{source.file.parent / 'config.json'} is of another network and is not used.")
        folder = None
        found = find_weights(file.content, shapes_of, settings_by_network(supposed, None, settings), given)
        chosen = choose(source.file, file.content, found, weights, shapes_of, given)
    line = describe_choice(source.file, file.content, found, chosen, source.is_ema, source.left_out)
    log(
        line
        if folder is None or source.is_folder
        else f"{line} The network's settings are those of config.json beside it."
    )
    if version is not None and chosen.network.name == "lucidrains":
        log(f"It was saved by version {printable(file.version)} of denoising_diffusion_pytorch.")
    if folder is not None:
        known |= folder.told
        for note in folder.notes:
            log(note)
    if named is not None:
        log(
            f"The name of {source.file} is that of a model of {named.source}, whose settings are taken where not given."
        )
    require_settings(known, settings, path)
    return Loaded(
        values=read_arrays(chosen.arrays, source.file),
        network=chosen.network,
        image_channels=chosen.recognised.image_channels,
        image_size=None if folder is None else folder.image_size,
        diffusion=None if folder is None else folder.diffusion,
        assumed=tuple(name for name in chosen.recognised.not_shown if name not in (*known, *settings)),
        found=chosen,
        content=file.content,
        layout=record_layout(file, found, chosen),
        class_names=None if folder is None else folder.class_names,
        published=named,
    )


def loaded_with(values: StateDict, info: ModelInfo, settings: dict[str, Any], path: Path) -> Loaded:
    """Weights with complete metadata. Raises UserError for settings of the network that differ from them."""
    unknown = [name for name in settings if name not in info.network.arguments]
    if unknown:
        expected = ", ".join(info.network.arguments) or "none"
        raise UserError(f"{info.network.name} has no setting {', '.join(unknown)}: expected {expected}.")
    require_settings(info.network.arguments, settings, path)
    height, width, channels = info.image_shape
    size = (height, width)
    known = values, info.network, channels, size, info.diffusion, info.step
    return Loaded(*known, layout=info.layout, class_names=info.class_names)


def settings_by_network(
    supposed: NetworkConfig | None, folder: Folder | None, settings: Mapping[str, Any]
) -> dict[str, dict]:
    """By the network's name, its settings: those of `supposed`, over them the folder's, over all those given."""
    by_network: dict[str, dict[str, Any]] = {name: {} for name in NETWORKS}
    if supposed is not None:
        by_network[supposed.name] |= supposed.arguments
    if folder is not None:
        by_network[folder.network.name] |= folder.told
    return {name: {**known, **settings} for name, known in by_network.items()}


def differing(network: NetworkConfig, settings: Mapping[str, Any]) -> list[str]:
    """The settings that differ from those of the network, as text."""
    return [
        f"{name} = {value} (config.json: {network.arguments.get(name)})"
        for name, value in settings.items()
        if network.arguments.get(name) != value
    ]


def require_settings(known: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a given setting of the network that differs from what is known."""
    wrong = [
        f"{name} = {value} was given, but the weights or their settings say {known[name]}"
        for name, value in settings.items()
        if name in known and known[name] != (tuple(value) if isinstance(value, list) else value)
    ]
    if wrong:
        raise UserError(f"{path} does not fit --network-setting: {'; '.join(wrong)}.")


def initial_weights(
    path: str | os.PathLike,
    network: NetworkConfig,
    shapes_of: ShapesOf | None = None,
    read_checkpoint: ReadCheckpoint | None = None,
    log: Callable[[str], None] = print,
) -> StateDict:
    """The arrays of a model file from which to start training `network`. Raises UserError for another network.

    Settings that the file does not tell, such as heads, are taken to be those of `network`. If only the file's network
    has no classes, the label embedding is zero, so that the network starts as the one in the file.
    """
    path = local_path(path, log)
    given = None if network.name in BUILT_IN else network
    loaded = load(path, None, None, {}, network, shapes_of, read_checkpoint, log, given)
    if loaded.network.name != network.name:
        found = loaded.network.name
        raise UserError(
            f"{path} holds the network {found}, but this run has {network.name}.\n"
            f"Give another file, or choose this network: --preset {found} (in Python: preset({found!r}))."
        )
    if not (network.takes_labels and not loaded.network.takes_labels):
        require_network(loaded.network, network, path, "this run")
        return loaded.values
    require_network(loaded.network, network.without_classes(), path, "this run")
    shapes = shapes_of(network, loaded.image_channels) if shapes_of else {}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name not in loaded.values}
    rows = network.label_count + (network.null_index is not None) if network.label_count else None
    if not zeros or any(array.ndim != 2 or len(array) != rows for array in zeros.values()):
        raise UserError(
            f"{path} has no classes, and this run's network has no table of labels that could start at zero: "
            f"{', '.join(zeros) or 'no array'}.\nGive a file of a network with the same classes."
        )
    log(f"{path} has no classes: {', '.join(zeros)} starts at zero in every row, so the network starts as the file's.")
    return {**loaded.values, **zeros}


def require_network(stored: NetworkConfig, network: NetworkConfig, path: str | os.PathLike, whose: str) -> None:
    """Raise UserError if the network of a file differs from `network`, which is `whose`. The dropout may differ."""
    found, ignored = asdict(stored), ["dropout"]
    if not (stored.takes_labels or network.takes_labels):
        ignored.append("null_label")
    wrong = [
        f"{name} = {found.get(name)} (expected {value})"
        for name, value in asdict(network).items()
        if name not in ignored and found.get(name) != value
    ]
    if wrong:
        raise UserError(f"{path} has another network than {whose}: {', '.join(wrong[:3])}.")


def require_no_conflict(stored: DiffusionConfig, given: dict, path: str | os.PathLike) -> None:
    """Raise UserError if a given training setting differs from the stored one. Sampling settings may differ."""
    wrong = [
        f"{name} = {value} was given, but the model was trained with {getattr(stored, name)}"
        for name, value in given.items()
        if name not in SAMPLING_SETTINGS and value != getattr(stored, name)
    ]
    if wrong:
        raise UserError(f"{path} does not fit these settings: {'; '.join(wrong)}. Leave them out.")


def parse_metadata(metadata: str | None, path: Path) -> ModelInfo:
    """The ModelInfo in our metadata (JSON)."""
    try:
        version = json.loads(metadata)["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}; expected version {FORMAT_VERSION}.")
    info = from_json(ModelInfo, metadata, f"The metadata of {path}", recorded_imports(path.parent))
    if info.class_names is not None and len(info.class_names) != info.network.label_count:
        classes = f"{len(info.class_names)} names of classes, but {info.network.label_count} classes"
        raise UserError(f"The metadata of {path} has {classes}: expected a name for each class.")
    return info
