"""Where the metrics and sample grids of a run go besides its folder: TensorBoard's files, Weights & Biases, trackio.

All of them are told the same: each row of metrics.jsonl, and each sample grid.
"""

import importlib
import importlib.util
import json
import os
import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.run_config import OutputConfig, RunConfig
from jax_ddpm.spec.text import one_line
from jax_ddpm.training.tensorboard import TensorBoard

TRACKERS_FILE = "trackers.json"
"""In the folder of a run: for each service, the id under which it knows the run, and the last step that it has."""
PROJECT = "jax_ddpm"
"""The project of a run, unless WANDB_PROJECT or TRACKIO_PROJECT names another one."""
SERVICES = ("wandb", "trackio")
"""Trackers that are packages of their own, with an extra of the same name."""


class Tracker(Protocol):
    """What is told of a run. A failure to write is logged once; then this tracker gets nothing more."""

    def row(self, row: dict) -> None:
        """Write a row of metrics.jsonl, without its null values."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Write a PNG file."""

    def flush(self) -> None:
        """Write what waits in memory."""

    def finish(self, failed: bool) -> None:
        """Nothing follows: the training ended, or (failed) it was stopped by an error or by a signal."""


class Trackers:
    """All trackers of a run. As a context manager, it finishes them at the end."""

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = trackers

    def row(self, row: dict) -> None:
        for tracker in self.trackers:
            tracker.row(row)

    def picture(self, name: str, path: Path, step: int) -> None:
        for tracker in self.trackers:
            tracker.picture(name, path, step)

    def flush(self) -> None:
        for tracker in self.trackers:
            tracker.flush()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind, *error) -> None:
        for tracker in self.trackers:
            tracker.finish(failed=kind is not None)


class Service:
    """A run in Weights & Biases or in trackio.

    The run's id is in trackers.json, so that a training that is resumed goes on in the same run. It does not send again
    what the service has: the rows that it computes a second time are the same. Rows that the service lacks, because the
    process was killed or had no such tracker, are sent first.

    Args:
        package: "wandb" or "trackio".
        start: the step at which this process starts.
        rows: the rows of metrics.jsonl, with those after `start` that an interrupted process wrote.

    Raises UserError if the service does not start.
    """

    def __init__(
        self, package: str, config: RunConfig, folder: Path, start: int, rows: list[dict], log: Callable[[str], None]
    ):
        self.package, self.folder, self.log = package, folder, log
        self.module = importlib.import_module(package)
        known = self.records().get(package)
        self.record = known or self.write_record({"id": self.new_id(), "step": 0})
        settings = json.loads(json.dumps(asdict(config)))  # lists for tuples
        try:
            start_run = self.wandb if package == "wandb" else self.trackio
            self.run = start_run(self.record["id"], settings)
        except Exception as error:  # of the network, of the login, or of the settings: there is no common class
            raise UserError(
                f"{package} did not start ({type(error).__name__}: {one_line(error)}).\n{self.way_out()}"
            ) from None
        self.sent = self.last_step_there(rows) if known else 0
        self.newest = self.sent
        for row in rows:
            if row["step"] <= start:
                self.row(row)

    def records(self) -> dict[str, dict]:
        """The content of trackers.json."""
        path = self.folder / TRACKERS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def write_record(self, record: dict) -> dict:
        """Store this service's id and last step, and return them."""
        write_text(self.folder / TRACKERS_FILE, json.dumps({**self.records(), self.package: record}, indent=2) + "\n")
        return record

    def new_id(self) -> str:
        """An id; for trackio, which shows it as the name of the run, with the name of the folder."""
        unique = secrets.token_hex(4)
        return unique if self.package == "wandb" else f"{self.folder.resolve().name}-{unique}"

    def last_step_there(self, rows: list[dict]) -> int:
        """The last step that the service has of the run; 0 if it has none.

        Weights & Biases says it if there is a connection. Without one, its file is only complete if the process ended
        by itself, which stores the step. trackio writes each row within a second.
        """
        if self.package == "trackio":
            return rows[-1]["step"] if rows else 0
        return max(self.record["step"], getattr(self.run, "starting_step", 0) - 1)

    def wandb(self, id_: str, settings: dict):
        """Start or resume a run of Weights & Biases. Its files are in wandb/ of the run's folder."""
        return self.module.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=id_,
            name=os.environ.get("WANDB_NAME") or self.folder.resolve().name,
            dir=os.environ.get("WANDB_DIR") or str(self.folder),
            config=settings,
            allow_val_change=True,
            resume="allow",
        )

    def trackio(self, id_: str, settings: dict):
        """Start or resume a run of trackio."""
        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        return self.module.init(project=project, name=id_, config=settings, resume="allow")

    def way_out(self) -> str:
        if self.package == "wandb":
            how = "Log in (wandb login), or set WANDB_MODE=offline."
        else:
            how = "Without TRACKIO_SPACE_ID it writes on this computer only."
        return f"{how} Then add --resume. Or choose another --tracker."

    def row(self, row: dict) -> None:
        self.send({name: value for name, value in row.items() if name != "step" and value is not None}, row["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        if self.run is not None and path.exists():
            self.send({name.replace(" ", "_"): self.module.Image(str(path))}, step)

    def send(self, values: dict, step: int) -> None:
        """Log values of a step, unless the service has those of this step from an earlier process."""
        if self.run is None or step <= self.sent:
            return
        try:
            self.run.log(values, step=step)
            self.newest = step
        except Exception as error:  # as in __init__
            self.run = None
            self.log(f"{self.package}: {one_line(error)}. Training continues without it.")

    def flush(self) -> None:
        """Nothing: the service has a process or thread of its own that sends what it gets."""

    def finish(self, failed: bool) -> None:
        if self.run is None:
            return
        try:
            self.write_record({**self.record, "step": self.newest})
            self.run.finish(**({"exit_code": int(failed)} if self.package == "wandb" else {}))
        except Exception as error:  # as in __init__
            self.log(f"{self.package}: {one_line(error)}.")


def chosen(output: OutputConfig) -> tuple[str, ...]:
    """The names of the trackers that a run has."""
    return tuple(name for name in output.tracker if name != "none" and (name != "tensorboard" or output.tensorboard))


def check_trackers(output: OutputConfig) -> None:
    """Raise UserError if the package of a tracker is missing."""
    for name in chosen(output):
        if name in SERVICES and importlib.util.find_spec(name) is None:
            raise UserError(
                f"tracker = {name}: the Python package {name} is not installed.\n"
                f"Install it (pip install 'jax-ddpm[{name}]'), or choose another --tracker."
            )


def open_trackers(
    config: RunConfig, folder: Path, start: int, rows: list[dict], log: Callable[[str], None]
) -> Trackers:
    """The trackers that `config.output` names, and a line on where each is seen.

    start, rows: as for `Service`.
    """
    trackers: list[Tracker] = []
    for name in chosen(config.output):
        if name == "tensorboard":
            trackers.append(TensorBoard(folder, start, True, log))
            log(f"To see the training in TensorBoard: tensorboard --logdir {shlex.quote(str(folder))}")
        else:
            trackers.append(Service(name, config, folder, start, rows, log))
    return Trackers(trackers)
