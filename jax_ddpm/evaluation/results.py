"""`evaluation/results.jsonl` in the folder of a run: one JSON object for each evaluation of its weights."""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.files import write_text

EVALUATION = "evaluation"
SAMPLES = "samples"
RESULTS_FILE = "results.jsonl"
LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Result:
    """One evaluation of a run's weights."""

    step: int | None
    """Optimiser steps that the weights were trained for; None if unknown."""
    weights: str | None
    """ "ema" or "raw"; None if unknown."""
    sampler: SamplerConfig
    """How the images were drawn."""
    seed: int
    """Seed of the images."""
    scores: dict[str, Any]
    """`Scores.as_dict()`: the numbers, the number of images, the extractor, the reference and the floor."""
    seconds: float
    """Time that drawing and scoring took; images that were there already took none."""
    date: str = ""
    """ISO 8601, UTC. Default: now."""
    diffusion: DiffusionConfig | None = None
    """The diffusion settings, of which some concern sampling."""
    guide: str | None = None
    """The start of the hash of the guide's weights; None without a guide."""
    ema_width: float | None = None
    """Width of the power-function average that was loaded, for weights "ema"; None: the run's usual weights."""

    def as_dict(self) -> dict:
        """As a line of the file holds it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return {**asdict(self), "seconds": round(self.seconds, 1), "date": self.date or now}


def results_file(run: str | Path) -> Path:
    """RUN/evaluation/results.jsonl."""
    return Path(run) / EVALUATION / RESULTS_FILE


def samples_folder(run: str | Path) -> Path:
    """RUN/evaluation/samples, a `folder` for `draw_samples`."""
    return Path(run) / EVALUATION / SAMPLES


def append_result(run: str | Path, result: Result) -> Path:
    """Add a line to the results of a run, and return the path of their file. Raises OSError.

    The file is replaced as a whole: nobody reads half a line, and none is lost if two processes add one.
    """
    path = results_file(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(LOCK_FILE)):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        write_text(path, f"{text.rstrip()}\n{json.dumps(result.as_dict())}\n".lstrip())
    return path


def read_results(run: str | Path) -> list[dict]:
    """The results of a run, oldest first: `Result.as_dict()` of each; none if it was never evaluated.

    Lines that are no JSON objects are left out.
    """
    try:
        text = results_file(run).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [each for each in found if isinstance(each, dict)]


def as_columns(results: Sequence[dict]) -> dict[str, list]:
    """Results as columns, for a notebook: `pandas.DataFrame(as_columns(read_results("runs/x")))`.

    Nested values get names such as `sampler.num_steps`, `scores.fid` and `scores.floor.fid`. A result without a value
    has None there.
    """
    rows = [flatten(result) for result in results]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with names joined by dots."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
