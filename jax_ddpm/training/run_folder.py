"""A run's folder: who may write into it, its config.json and its metrics.jsonl."""

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

from filelock import FileLock, Timeout

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.run_config import RunConfig, slug

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
STARTS = "starts"  # in config.json, beside the settings
OURS = (CONFIG_FILE, METRICS_FILE, "checkpoints", "samples", "model.safetensors", "report.html", "tensorboard")

# What may differ when a run is resumed: paths, intervals, how pictures are drawn, and how long it goes on.
MAY_CHANGE = {"data.data_dir", "data.manual_dir", "data.cache_dir"}
MAY_CHANGE |= {"training.epochs", "training.steps", "training.max_skipped"}


def default_out(config: RunConfig) -> Path:
    return Path("runs") / f"{slug(config.data.dataset)}-{config.preset}"


def load_config(folder: Path) -> RunConfig:
    """The settings of the run in `folder`; UserError where there is none."""
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UserError(
            f"There is no run to resume in {folder}: expected its {CONFIG_FILE}. Leave --resume out to start one."
        )
    return read_config(path)


def read_config(path: Path) -> RunConfig:
    """The settings in a config.json. UserError for anything else."""
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): expected the config.json of a run.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a valid RunConfig: {error}.") from None
    if isinstance(settings, dict):
        settings.pop(STARTS, None)
    return from_json(RunConfig, json.dumps(settings), str(path))


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


@contextmanager
def claim(folder: Path, config: RunConfig, resume: bool = False) -> Iterator[None]:
    """Make the folder, hold it against other processes while the context is open, and write its config.json.

    UserError where it cannot be written, or where another process holds it.
    """
    lock = FileLock(folder / LOCK_FILE)  # the system releases it however the process ends
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"Another process is training in {folder}. Wait for it, or choose another --out.") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}). Choose another --out.") from None
    try:
        check_folder(folder, config, resume)  # again: it may have come and gone in the meantime
        try:
            drafts = [path for name in OURS for path in folder.glob(f".{name}.*")]
            for draft in [*drafts, *(folder / "samples").glob(".*")]:  # of a killed run
                draft.unlink()
            write_text(folder / CONFIG_FILE, described(folder, config) + "\n")
            (folder / "samples").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}). Choose another --out.") from None
        yield
    finally:
        lock.release()


def described(folder: Path, config: RunConfig) -> str:
    """The text of config.json: every setting, and how and where the run was started, each time."""
    try:
        before = json.loads((folder / CONFIG_FILE).read_text())[STARTS]
    except (OSError, ValueError, KeyError):
        before = []
    return json.dumps({**dataclasses.asdict(config), STARTS: [*before, surroundings()]}, indent=2)


def surroundings() -> dict:
    """Time, command, versions, devices and the state of the source's git repository, where it is one."""
    packages = ("jax-ddpm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    jax = sys.modules.get("jax")  # the PyTorch trainer has its own devices
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([sys.executable, *sys.argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version_of(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()] if jax else None,
        "commit": git("rev-parse", "HEAD"),
        "changed_files": (git("status", "--porcelain", "--untracked-files=no") or "").splitlines(),
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """What git says about the folder of this package; None where it is not in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.rstrip()
    except (OSError, subprocess.SubprocessError):
        return None


def refuse_changes(old: RunConfig, new: RunConfig) -> None:
    """UserError that names every setting in which a resumed run differs where it may not."""
    before, after = flat(old), flat(new)
    changed = [
        f"{name.split('.')[-1]} was {before.get(name)}, now {after.get(name)}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
        and name not in MAY_CHANGE
        and not name.startswith(("output.", "sampling."))
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


class MetricsLog:
    """metrics.jsonl: rows, each the mean of the steps since the one before."""

    def __init__(self, folder: Path, log: Callable[[str], None]):
        self.path, self.log = folder / METRICS_FILE, log
        self.pending: list[dict] = []
        """Figures of the steps that belong to the next row."""
        self.unwritten: list[dict] = []
        """Rows that could not be written yet."""
        self.watch: Callable[[dict], None] = lambda row: None
        """Told every new row."""

    def rewind(self, step: int, pending: list[dict], unwritten: list[dict]) -> None:
        """Go back to a checkpoint at `step`: drop what was written after it, take up what it had not yet written."""
        kept = [row for row in self.rows() if row["step"] <= step]
        last = kept[-1]["step"] if kept else 0
        kept += [row for row in unwritten if row["step"] > last]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
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
        return [*rows, *self.unwritten]

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
        self.pending, self.unwritten = [], [*self.unwritten, row]
        self.watch(row)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in self.unwritten))
            self.unwritten = []
        except OSError as error:  # a full disk: the next row tries again
            with suppress(OSError):
                os.truncate(self.path, size)
            self.log(f"{self.path} could not be written ({error.strerror}). Training goes on; its rows are kept.")
        return row
