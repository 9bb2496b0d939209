"""The folder of a run: its lock, its config.json and its metrics.jsonl."""

import dataclasses
import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from jax_ddpm.spec.data_record import DATA_FILE, write_record
from jax_ddpm.spec.ema_snapshots import SNAPSHOTS
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.network_config import BUILT_IN
from jax_ddpm.spec.own_networks import IMPORTED, IMPORTS, recorded_imports
from jax_ddpm.spec.read_run import CONFIG_FILE, STARTS, read_config
from jax_ddpm.spec.run_config import RunConfig, slug

if TYPE_CHECKING:
    from jax_ddpm.data import ImageData

METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
RUN_FILES = (CONFIG_FILE, DATA_FILE, METRICS_FILE, "checkpoints", "samples", "model.safetensors", "report.html")
RUN_FILES += ("tensorboard", "evaluation", SNAPSHOTS, "wandb", "trackers.json")

# Settings that may change when a run is resumed; so may everything in `output` and `sampling`.
CHANGEABLE = {"data.data_dir", "data.manual_dir", "data.cache_dir"}
CHANGEABLE |= {"training.epochs", "training.steps", "training.max_skipped"}
# Memory and time; the result changes by rounding only.
CHANGEABLE |= {"training.accumulate", "training.remat", "training.fsdp"}


def default_out(config: RunConfig) -> Path:
    """runs/DATASET-PRESET."""
    return Path("runs") / f"{slug(config.data.dataset)}-{config.preset}"


def load_config(folder: Path) -> RunConfig:
    """The settings of the run in `folder`. Raises UserError if it holds no run."""
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UserError(
            f"There is no run to resume in {folder}: expected its {CONFIG_FILE}. To start a run, omit --resume."
        )
    return read_config(path)


def check_folder(folder: Path, config: RunConfig, resume: bool) -> None:
    """Check that a run with these settings can start in `folder`, or continue there (`resume`). Writes nothing.

    Raises UserError if `folder` already holds a run; with `resume`, if it holds none or one with other settings.
    """
    if resume:
        check_unchanged(load_config(folder), config, has_record=(folder / DATA_FILE).exists())
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: expected a folder. Choose another --out.")
    elif taken := [name for name in RUN_FILES if (folder / name).exists()]:
        raise UserError(
            f"{folder} already holds a run ({taken[0]}).\n"
            "To continue this run, add --resume. To start another run, choose another --out."
        )


@contextmanager
def lock_folder(folder: Path, config: RunConfig, resume: bool, images: "ImageData") -> Iterator[None]:
    """Create the folder, lock it for this process while the context is open, and write config.json and data.json.

    Raises UserError if the folder cannot be written, or if another process has locked it.
    """
    lock = FileLock(folder / LOCK_FILE)  # the operating system releases it, however the process ends
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"Another process is training in {folder}. Wait for it, or choose another --out.") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}). Choose another --out.") from None
    try:
        check_folder(folder, config, resume)  # again: another process may have trained here since the first check
        try:
            drafts = [path for name in RUN_FILES for path in folder.glob(f".{name}.*")]
            drafts += [path for name in ("samples", SNAPSHOTS) for path in (folder / name).glob(".*")]
            for draft in drafts:  # temporary files of a killed run
                draft.unlink()
            write_text(folder / CONFIG_FILE, config_json(folder, config) + "\n")
            write_record(folder, images)
            (folder / "samples").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}). Choose another --out.") from None
        yield
    finally:
        lock.release()


def config_json(folder: Path, config: RunConfig) -> str:
    """The text of config.json: all settings, what --import named, and one `environment()` for each start of the run."""
    try:
        earlier_starts = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))[STARTS]
    except (OSError, ValueError, KeyError):
        earlier_starts = []
    imports = IMPORTED or recorded_imports(folder)
    own = {IMPORTS: imports} if imports and config.network.name not in BUILT_IN else {}
    return json.dumps({**dataclasses.asdict(config), **own, STARTS: [*earlier_starts, environment()]}, indent=2)


def environment() -> dict:
    """Time, command, versions, devices, and the commit and changed files of the source, if it is a git repository."""
    packages = ("jax-ddpm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    jax = sys.modules.get("jax")  # not loaded in the PyTorch trainer
    processes = jax.process_count() if jax else 1
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([sys.executable, *sys.argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version_of(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()] if jax else None,
        **({"processes": processes} if processes > 1 else {}),
        "commit": git("rev-parse", "HEAD"),
        "changed_files": (git("status", "--porcelain", "--untracked-files=no") or "").splitlines(),
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """The output of a git command in the folder of this package; None if that is not in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.rstrip()
    except (OSError, subprocess.SubprocessError):
        return None


def check_unchanged(old: RunConfig, new: RunConfig, has_record: bool) -> None:
    """Raises UserError, listing every setting of a resumed run that changed but must not.

    has_record: whether the run has a record of its images, so that another name for them can be checked.
    """
    if old.data.dataset != new.data.dataset and not has_record:
        raise UserError(
            f"This run has no {DATA_FILE}, so nothing shows whether {new.data.dataset} holds its images.\n"
            f"Put the images, or a link to them, where they were ({old.data.dataset}), and omit --dataset."
        )
    before, after = flatten(old), flatten(new)
    changed = [
        f"{name.split('.')[-1]} was {before.get(name)}, now {after.get(name)}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
        and name not in CHANGEABLE
        and name != "data.dataset"  # `check_same_images` compares the images
        and not name.startswith(("output.", "sampling."))
    ]
    for name in ("epochs", "steps"):
        was, now = getattr(old.training, name), getattr(new.training, name)
        if None not in (was, now) and now < was:
            changed.append(f"{name} was {was}, now {now} (expected at least {was})")
    if changed:
        raise UserError(
            f"A resumed run must keep its settings: {'; '.join(changed)}.\n"
            "Omit these flags, or start another run with another --out."
        )


def flatten(config) -> dict:
    """The settings by "section.name"."""
    return {
        f"{section}.{name}" if isinstance(value, dict) else section: inner
        for section, value in dataclasses.asdict(config).items()
        for name, inner in (value.items() if isinstance(value, dict) else [("", value)])
    }


class MetricsLog:
    """metrics.jsonl: rows of metrics, each the mean over the steps since the previous row."""

    def __init__(self, folder: Path, log: Callable[[str], None]):
        self.path, self.log = folder / METRICS_FILE, log
        self.pending: list[dict] = []
        """Metrics of the steps that belong to the next row."""
        self.unwritten: list[dict] = []
        """Rows that could not be written yet."""
        self.on_row: Callable[[dict], None] = lambda row: None
        """Called with each new row."""

    def rewind(self, step: int, pending: list[dict], unwritten: list[dict]) -> None:
        """Go back to the checkpoint at `step`.

        Drops later rows, and restores the rows and metrics that were not yet written when the checkpoint was saved.

        pending, unwritten: from the record of the checkpoint.
        """
        kept = [row for row in self.rows() if row["step"] <= step]
        last = kept[-1]["step"] if kept else 0
        kept += [row for row in unwritten if row["step"] > last]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.pending = list(pending)

    def rows(self) -> list[dict]:
        """All complete rows so far."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # an incomplete line: the run was killed
        return [*rows, *self.unwritten]

    def add(self, metrics: dict) -> None:
        """Add the metrics of one step: step, loss, grad_norm, learning_rate and skipped."""
        self.pending.append(metrics)

    def write_row(self, epoch: int, **extra) -> dict:
        """Write the row of the pending steps, and return it. extra: further values of the row.

        Means leave out the skipped steps; `skipped` is their number. Values that are not finite become null.
        """
        last, taken = self.pending[-1], [step for step in self.pending if not step["skipped"]]
        row = {"step": last["step"], "epoch": epoch}
        for name in ("loss", "grad_norm"):
            row[name] = sum(step[name] for step in taken) / len(taken) if taken else None
        row |= {"learning_rate": last["learning_rate"], "skipped": len(self.pending) - len(taken), **extra}
        row = {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}
        self.pending, self.unwritten = [], [*self.unwritten, row]
        self.on_row(row)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in self.unwritten))
            self.unwritten = []
        except OSError as error:  # for example a full disk: retried with the next row
            with suppress(OSError):
                os.truncate(self.path, size)
            self.log(f"{self.path} could not be written ({error.strerror}). Training continues and will try again.")
        return row
