"""A run's folder: who may write into it, its config.json and its metrics.jsonl."""

import dataclasses
import json
import math
import os
from pathlib import Path

from jax_ddpm.config import RunConfig, from_json, slug, to_json
from jax_ddpm.errors import UserError

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
OURS = (CONFIG_FILE, METRICS_FILE, "checkpoints", "samples", "model.safetensors", "report.html", "tensorboard")

# What may differ when a run is resumed: paths, intervals, and how long it goes on.
MAY_CHANGE = {"data.data_dir", "data.manual_dir", "data.cache_dir"}
MAY_CHANGE |= {"training.epochs", "training.steps", "training.max_skipped"}


def default_out(config: RunConfig) -> Path:
    return Path("runs") / f"{slug(config.data.dataset)}-{config.preset}"


def load_config(folder: Path) -> RunConfig:
    """The settings of the run in `folder`; UserError where there is none."""
    path = folder / CONFIG_FILE
    try:
        text = path.read_text()
    except OSError:
        raise UserError(
            f"There is no run to resume in {folder}: expected its {CONFIG_FILE}. Leave --resume out to start one."
        ) from None
    return from_json(RunConfig, text, str(path))


def check_folder(folder: Path, config: RunConfig, resume: bool) -> None:
    """UserError for a folder that holds another run, or one that was trained with other settings; writes nothing."""
    if resume:
        refuse_changes(load_config(folder), config)
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: expected a folder. Choose another --out.")
    elif taken := [name for name in OURS if (folder / name).exists()]:
        raise UserError(
            f"{folder} already holds a run ({taken[0]}).\n"
            "To go on with it, add --resume; to start another, choose another --out."
        )


def claim(folder: Path, config: RunConfig) -> None:
    """Make the folder and write its config.json. UserError where it cannot be written."""
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG_FILE, to_json(config) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}). Choose another --out.") from None


def refuse_changes(old: RunConfig, new: RunConfig) -> None:
    """UserError that names every setting in which a resumed run differs where it may not."""
    before, after = flat(old), flat(new)
    changed = [
        f"{name.split('.')[-1]} was {before.get(name)}, now {after.get(name)}"
        for name in {**before, **after}
        if before.get(name) != after.get(name) and name not in MAY_CHANGE and not name.startswith("output.")
    ]
    for name in ("epochs", "steps"):
        was, now = getattr(old.training, name), getattr(new.training, name)
        if None not in (was, now) and now < was:
            changed.append(f"{name} was {was}, now {now} (it may only grow)")
    if changed:
        raise UserError(
            f"A resumed run keeps its settings: {'; '.join(changed)}.\n"
            "Leave these flags out, or start anew with another --out."
        )


def flat(config) -> dict:
    return {
        f"{section}.{name}" if isinstance(value, dict) else section: inner
        for section, value in dataclasses.asdict(config).items()
        for name, inner in (value.items() if isinstance(value, dict) else [("", value)])
    }


def write_atomically(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


class MetricsLog:
    """metrics.jsonl: one row per `every` steps, each the mean of the steps since the last row."""

    def __init__(self, folder: Path, every: int):
        self.path, self.every = folder / METRICS_FILE, every
        self.pending: list[dict] = []

    def rewind(self, step: int, pending: list[dict]) -> None:
        """Drop what a killed run wrote after the checkpoint at `step`, and take up the steps that had no row yet."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.pending = list(pending)

    def rows(self) -> list[dict]:
        """Every complete row so far."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # the last line of a killed run
        return rows

    def add(self, metrics: dict) -> None:
        """One step's figures: at least step and loss."""
        self.pending.append(metrics)

    def write_row(self, epoch: int, **extra) -> dict:
        """The row of the steps since the last one; `extra` figures stand beside the means.

        Means are of the steps that were not skipped, `skipped` counts the others; what is not finite is null.
        """
        last, good = self.pending[-1], [step for step in self.pending if not step["skipped"]]
        row = {"step": last["step"], "epoch": epoch}
        row |= {name: sum(step[name] for step in good) / len(good) if good else None for name in ("loss", "grad_norm")}
        row |= {"learning_rate": last["learning_rate"], "skipped": len(self.pending) - len(good), **extra}
        row = {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.pending = []
        return row
