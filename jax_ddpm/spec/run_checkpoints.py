"""Which checkpoint of a run is asked for, whether it is damaged, and whether the run has averaged weights."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line, some

CHECKPOINTS, STATE, RECORD, MANIFEST = "checkpoints", "state", "record.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Weights in a checkpoint of a run."""

    run: Path
    step: int
    weights: str
    """ "ema" or "raw"."""

    @property
    def folder(self) -> Path:
        return self.run / CHECKPOINTS / str(self.step)


def find_checkpoint(path: str | os.PathLike, weights: str | None, step: int | None) -> Checkpoint | None:
    """The checkpoint that is asked for by its path, by `step`, or by raw weights of a run; None for other models.

    Raises UserError if there is none.
    """
    path = Path(path)
    if is_checkpoint(path):
        run, steps = path.absolute().parents[1] if len(path.parts) < 3 else path.parent.parent, [int(path.name)]
    else:
        if path.name == CHECKPOINTS and path.is_dir() and not is_run(path):
            path = path.parent
            step = steps_of(path)[-1] if step is None and steps_of(path) else step
        run, steps = path, steps_of(path)
    has_average = averages_weights(run)
    if step is None and not is_checkpoint(path) and not (weights == "raw" and has_average):
        return None
    wanted = step if step is not None else steps[-1] if steps else None
    if wanted not in steps:
        held = f"expected one of {some([str(each) for each in steps], 8)}" if steps else "it has none"
        raise UserError(f"{path} has no checkpoint{'' if step is None else f' of step {step}'}: {held}.")
    if weights == "ema" and has_average is False:
        raise UserError(f"{run} was trained without EMA: leave out --weights ema (in Python: weights='ema').")
    return Checkpoint(run, wanted, weights or ("ema" if has_average else "raw"))


def is_checkpoint(path: Path) -> bool:
    """Whether the path is a checkpoint's folder, checkpoints/<step> of a run."""
    return path.name.isdecimal() and (path / STATE).is_dir() and (path / RECORD).is_file()


def is_run(path: Path) -> bool:
    return averages_weights(path) is not None


def steps_of(run: Path) -> list[int]:
    """The steps of a run's checkpoints, ascending."""
    folder = run / CHECKPOINTS
    return sorted(int(each.name) for each in folder.iterdir() if is_checkpoint(each)) if folder.is_dir() else []


def averages_weights(run: Path) -> bool | None:
    """Whether a run keeps an average (EMA) of its weights, by its config.json; None if the folder holds no run."""
    try:
        ema = json.loads((run / "config.json").read_text(encoding="utf-8"))["training"]["ema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return ema if isinstance(ema, bool) else None


def find_damage(folder: Path) -> str | None:
    """Compare a checkpoint's files with their checksums: the differences as text, or None if all match."""
    try:
        expected, found = json.loads((folder / MANIFEST).read_text(encoding="utf-8")), checksums(folder)
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {one_line(error)}"
    if not isinstance(expected, dict):
        return f"{MANIFEST} holds no checksums"
    wrong = [f"{name} is missing" if name not in found else f"{name} has changed" for name in expected]
    wrong = [text for text, (name, value) in zip(wrong, expected.items(), strict=True) if found.get(name) != value]
    return "; ".join(wrong[:3]) or None


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a checkpoint's folder except the manifest, by its path relative to the folder."""
    sums = {}
    for path in files_of(folder):
        if path.name != MANIFEST:
            with open(path, "rb") as file:
                sums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def check_own_weights(path: Path, weights: str | None) -> None:
    """Raise UserError if a file that was written by jax_ddpm, or its run, does not hold the weights asked for."""
    has_average = averages_weights(path if path.is_dir() else path.parent)
    flag = f"--weights {weights} (in Python: weights={weights!r})"
    if weights is None or has_average is (weights == "ema"):
        return
    if has_average is None:
        raise UserError(
            f"{path} holds one set of weights and does not say whether they are EMA or raw: leave out {flag}."
        )
    if has_average:
        raise UserError(f"{path} holds EMA weights. For the raw ones, name the folder of the run: {path.parent}.")
    raise UserError(f"{path} was trained without EMA: leave out {flag}.")
