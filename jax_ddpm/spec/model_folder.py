"""Which file of a folder holds the model, and which settings stand beside it."""

import re
from dataclasses import dataclass
from pathlib import Path

from jax_ddpm.spec import diffusers_folder
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.read_content import EXPECTED, GIT_LFS, STARTS_OF_OTHER_FILES, kind_of
from jax_ddpm.spec.run_checkpoints import CHECKPOINTS, is_run, steps_of
from jax_ddpm.spec.text import some

MODEL_FILE = "model.safetensors"
NOT_MODELS = re.compile(r"optim|scheduler|random_state|rng|scaler|training_args|arguments", re.IGNORECASE)
SHARD = re.compile(r"-\d{5}-of-\d{5}")
VARIANT = re.compile(r"\.(fp16|bf16|fp32|float16|bfloat16|non_ema)(?=\.)")

MAX_POINTER = 1024  # bytes of a pointer of Git LFS

ENDING = re.compile(r"\.(safetensors|bin)(\.index\.json)?$")
TRAINER = re.compile(r"(?P<kind>ema_(?P<decay>[0-9.]+)_|model|opt)(?P<step>[0-9]{6,})\.pt")
"""Files of the trainer of improved-diffusion and guided-diffusion: averages, raw weights, and optimisers."""
CKPT = re.compile(r"(?P<start>([^.]*?_)??)(?P<average>ema_)?ckpt\.pt")
"""Files of the trainer of Diffusion-Models-pytorch: ema_ckpt.pt is the average of ckpt.pt."""


@dataclass(frozen=True)
class Source:
    """A file of weights, and what its folder tells."""

    file: Path
    folder: diffusers_folder.Folder | None = None
    """Settings in the format of diffusers, if there are some beside the file."""
    is_folder: bool = False
    """Whether the folder was named, not the file."""
    is_ema: bool | None = None
    """Whether the folder or the name of the file says that the weights are an average; None if they do not say it."""
    left_out: tuple[str, ...] = ()
    """Other weights in the folder."""


def find_source(path: Path, weights: str | None) -> Source:
    """The file of weights that a path stands for. Raises UserError if there is none, or if there are several."""
    if not path.is_dir():
        is_ema = is_average(path)
        if is_ema and weights == "raw":
            raise UserError(
                f"{path} has averaged weights, by its name: its raw weights are in {raw_name(path)}. Name that file."
            )
        return Source(index_of(path), diffusers_folder.settings_beside(path), is_ema=is_ema)
    diffusers_folder.refuse_other_models(path)
    if (path / MODEL_FILE).is_file():
        return Source(path / MODEL_FILE, diffusers_folder.settings_beside(path / MODEL_FILE), True)
    if not diffusers_folder.is_diffusers_folder(path):
        file = model_file(path, weights)
        if file is None:
            refuse_pointers(path)
            if is_run(path):
                raise UserError(unfinished(path))
            raise UserError(
                f"{path} has no {MODEL_FILE}, which a run writes with its checkpoints: expected {EXPECTED}."
            )
        return Source(file, None, True, is_average(file))
    models = [path / name for name in diffusers_folder.MODEL_FOLDERS if (path / name).is_dir()] or [path]
    is_ema = models[0].name == "unet_ema" and weights != "raw"
    model = models[0] if is_ema else models[-1]
    file = model_file(model, weights)
    if file is None:
        refuse_pointers(model)
        raise UserError(f"{model} has no weights: expected {' or '.join(diffusers_folder.WEIGHTS)}.")
    others = tuple(f"{each.name}/ ({'raw' if is_ema else 'EMA'} weights)" for each in models if each != model)
    return Source(file, diffusers_folder.read_folder(path, model), True, is_ema or None, others)


def refuse_pointers(folder: Path) -> None:
    """Raise UserError if a file of the folder is a pointer of Git LFS, which stands for the file itself."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < MAX_POINTER:
            with path.open("rb") as file:
                if file.read(len(GIT_LFS)) == GIT_LFS:
                    raise UserError(f"{path} is {STARTS_OF_OTHER_FILES[GIT_LFS]}.")


def has_model_file(run: Path) -> bool:
    """Whether the folder of a run holds a model; it does not if the run was interrupted early."""
    return (run / MODEL_FILE).is_file() or model_file(run) is not None


def unfinished(path: Path) -> str:
    """A message on a run without a model file: which checkpoints there are, and how it goes on."""
    go_on = f"Go on with: jax-ddpm train --resume --out {path}"
    if steps := steps_of(path):
        go_on = f"Name one of them, such as {path / CHECKPOINTS / str(steps[-1])}. {go_on}"
    held = f"Its checkpoints: {some([str(each) for each in steps], 8)}." if steps else "It has no checkpoint yet."
    return f"The run {path} was interrupted before it wrote {MODEL_FILE}. {held}\n{go_on}"


def model_file(folder: Path, weights: str | None = None) -> Path | None:
    """The file of a folder that holds its model: a run's, the only one, or the index of a model in several files.

    Of files that differ only in their ending or in a variant such as fp16, the one in full precision, and safetensors
    first. weights: "raw" prefers the variant non_ema. Of the files of OpenAI's trainer, the newest.

    None if there is none. Raises UserError if there are several.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    candidates = [path for path in files if path.name.endswith(".index.json") or is_model(path)]
    of_trainer = [path for path in candidates if TRAINER.fullmatch(path.name)]
    if of_trainer and len(of_trainer) == len(candidates):
        return newest_of_trainer(folder, of_trainer, weights)
    averages = [path for path in candidates if CKPT.fullmatch(path.name) and is_average(path)]
    if averages and {path.name for path in candidates} == {averages[0].name, raw_name(averages[0])}:
        return averages[0].with_name(raw_name(averages[0])) if weights == "raw" else averages[0]
    indices = [path for path in candidates if path.name.endswith(".index.json")]
    if indices:
        candidates = [*indices, *(path for path in candidates if path not in indices and not SHARD.search(path.name))]
    by_name: dict[str, list[Path]] = {}
    for path in candidates:
        by_name.setdefault(ENDING.sub("", VARIANT.sub("", path.name)), []).append(path)
    if not by_name:
        return None
    if len(by_name) > 1:
        names = some([path.name for path in candidates], 5)
        raise UserError(f"{folder} holds several model files ({names}): name one of them.")
    (variants,) = by_name.values()
    return min(variants, key=lambda path: preference(path.name, weights))


def newest_of_trainer(folder: Path, files: list[Path], weights: str | None) -> Path:
    """Of the files of OpenAI's trainer, the newest average, or the newest raw weights if there is none or `weights` is
    "raw". Of averages of the same step, that with the largest decay."""
    matches = {path: TRAINER.fullmatch(path.name) for path in files}
    averages = [path for path in files if matches[path]["decay"]]
    raws = [path for path in files if matches[path]["kind"] == "model"]
    chosen = averages or raws if weights is None else averages if weights == "ema" else raws
    if not chosen:
        kind = "averaged weights (ema_*.pt)" if weights == "ema" else "weights (model*.pt)"
        raise UserError(f"{folder} has no {kind}, only {some([path.name for path in files], 5)}.")
    return max(chosen, key=lambda path: (int(matches[path]["step"]), matches[path]["decay"] or ""))


def is_average(path: Path) -> bool | None:
    """Whether a file is an average, by its name and the files beside it; None if they do not say it."""
    if match := TRAINER.fullmatch(path.name):
        return match["decay"] is not None
    match = CKPT.fullmatch(path.name)
    if match and not match["average"]:
        return False if path.with_name(f"{match['start']}ema_ckpt.pt").is_file() else None
    return True if match else None


def raw_name(average: Path) -> str:
    """The name of the file with the raw weights of an average, by the names that its trainer gives."""
    match = TRAINER.fullmatch(average.name)
    return f"model{match['step']}.pt" if match else average.name.removesuffix("ema_ckpt.pt") + "ckpt.pt"


def preference(name: str, weights: str | None) -> tuple[bool, bool, bool, str]:
    """Key by which the files of one model are sorted: the first is taken."""
    variant = VARIANT.search(name)
    return (
        ("non_ema" in name) != (weights == "raw"),
        variant is not None and variant[1] not in ("fp32", "non_ema"),
        "safetensors" not in name,
        name,
    )


def is_model(path: Path) -> bool:
    """Whether a file is one of safetensors or PyTorch, by its first bytes, and not an optimiser's by its name."""
    if NOT_MODELS.search(path.name):
        return False
    try:
        with open(path, "rb") as file:
            return kind_of(file.read(512), path) != "index"
    except (UserError, OSError):
        return False


def index_of(path: Path) -> Path:
    """For one of the files of a model in several, the index beside it; else the path itself."""
    index = path.with_name(f"{SHARD.sub('', path.name)}.index.json")
    return index if SHARD.search(path.name) and index.is_file() else path
