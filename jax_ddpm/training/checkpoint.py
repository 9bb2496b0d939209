"""Checkpoints of a run: `checkpoints/<step>/`, everything needed to go on bit for bit.

In such a folder are `state/`, written by Orbax, `record.json`, what the loop knows beside the state, and
`manifest.json`, the SHA-256 of every other file. It is written as a draft and gets its name when it is whole.
"""

import hashlib
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.run_config import OutputConfig
from jax_ddpm.spec.text import one_line
from jax_ddpm.training.state import TrainState

STATE, RECORD, MANIFEST = "state", "record.json", "manifest.json"


class Checkpoints:
    """The checkpoints in a folder: written in the background, one at a time, and pruned after each.

    Kept are the newest `keep_checkpoints`, every one whose step is a multiple of `keep_every` (0: none), and the ones
    that the records of those name as best. What cannot be written is told by `log`, and what was there stays. A context
    manager, which is left when nothing is being written any more.
    """

    def __init__(self, folder: Path, config: OutputConfig, log: Callable[[str], None]):
        self.folder, self.keep, self.keep_every = folder.absolute(), config.keep_checkpoints, config.keep_every
        self.log = log
        self.writer: threading.Thread | None = None
        self.problem: str | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.wait()

    def tidy(self) -> None:
        """Remove what a killed run left half written."""
        for path in self.folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def save(self, step: int, state: TrainState, record: dict) -> None:
        """Returns once the state is copied. `record`: what JSON can hold; `best`, where there, names a step to keep."""
        self.wait()
        leaves = as_dict(state)
        for leaf in leaves.values():
            leaf.copy_to_host_async()  # from an accelerator all at once
        copy = {name: np.array(leaf) for name, leaf in leaves.items()}  # the state itself is donated next
        self.writer = threading.Thread(target=self.write, args=(step, copy, json.dumps(record)))
        self.writer.start()

    def write(self, step: int, arrays: dict[str, np.ndarray], record: str) -> None:
        draft, place = self.folder / f".{step}", self.folder / str(step)
        try:
            draft.mkdir(parents=True, exist_ok=True)
            check_room(draft, sum(array.nbytes for array in arrays.values()))
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                checkpointer.save(draft / STATE, args=ocp.args.StandardSave(arrays), force=True)
            (draft / RECORD).write_text(record)
            (draft / MANIFEST).write_text(json.dumps(checksums(draft), indent=1))
            for path in files_of(draft):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            if place.exists():
                self.remove(step)
            os.replace(draft, place)
            self.prune()
        except Exception as error:  # Orbax wraps what the system says in errors of many kinds
            self.problem = f"The checkpoint of step {step:,} could not be saved ({one_line(error)})."
            shutil.rmtree(draft, ignore_errors=True)

    def prune(self) -> None:
        steps = self.steps()
        kept = {step for step in steps if self.keep_every and step % self.keep_every == 0} | set(steps[-self.keep :])
        for step in set(steps) - kept - {self.best(step) for step in kept}:
            self.remove(step)

    def best(self, step: int) -> int | None:
        """The step that the record of a checkpoint names as best, if any."""
        try:
            return json.loads((self.folder / str(step) / RECORD).read_text())["best"]["step"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self, step: int) -> None:
        doomed = self.folder / f".{step}.removed"
        os.replace(self.folder / str(step), doomed)  # so that half a checkpoint never has the name of a whole one
        shutil.rmtree(doomed, ignore_errors=True)

    @property
    def writing(self) -> bool:
        """Whether one is being written now."""
        return self.writer is not None and self.writer.is_alive()

    def wait(self) -> None:
        """Until nothing is being written; tells what went wrong."""
        if self.writer is not None:
            self.writer.join()
        if self.problem is not None:
            steps = self.steps()
            rest = f"the newest whole one is of step {steps[-1]:,}" if steps else "there is none yet"
            self.log(f"{self.problem} Training goes on; {rest}.")
            self.problem = None

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint's files, by their checksums; None where nothing is."""
        folder = self.folder / str(step)
        try:
            expected, found = json.loads((folder / MANIFEST).read_text()), checksums(folder)
        except (OSError, ValueError) as error:
            return f"{MANIFEST} cannot be read: {one_line(error)}"
        if not isinstance(expected, dict):
            return f"{MANIFEST} is no list of checksums"
        wrong = [f"{name} is missing" if name not in found else f"{name} has changed" for name in expected]
        wrong = [text for text, (name, value) in zip(wrong, expected.items(), strict=True) if found.get(name) != value]
        return "; ".join(wrong[:3]) or None

    def newest(self, like: TrainState, at_most: int | None = None) -> tuple[int, TrainState, dict] | None:
        """Step, state and record of the newest whole checkpoint, up to step `at_most`; None where there is none at all.

        Damaged ones are named and passed over. UserError where all are damaged, or where the state does not fit `like`.
        """
        steps = [step for step in self.steps() if at_most is None or step <= at_most]
        for step in reversed(steps):
            problem = self.damage(step)
            if problem is None:
                return step, *self.restore(step, like)
            self.log(f"The checkpoint of step {step:,} is damaged and not used: {problem}.")
        if steps:
            raise UserError(f"{self.folder} holds no checkpoint that is whole: start anew with another --out.")
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """State and record at `step`, the state placed and typed like `like`. UserError if it does not fit."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, as_dict(like))
        folder = self.folder / str(step)
        try:
            with warnings.catch_warnings(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                warnings.simplefilter("ignore")
                restored = checkpointer.restore(folder / STATE, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"The checkpoint {folder} cannot be restored: {one_line(error)}.") from None
        state = jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in target])
        record = json.loads((folder / RECORD).read_text())
        # Orbax's arrays are not always donatable (jax#18617); those that come out of a jitted function are.
        return jax.jit(lambda x: jax.tree.map(jnp.copy, x))(state), record


def as_dict(state: TrainState) -> dict:
    """A flat dict in the order of the state's leaves, so that files do not depend on Flax's or optax's classes."""
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {f"{number:04d} {jax.tree_util.keystr(path)}": leaf for number, (path, leaf) in enumerate(paths)}


def check_room(folder: Path, size: int) -> None:
    """OSError where the disk does not take `size` more bytes; Orbax would say so in many lines."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a checkpoint's folder but the manifest, by its path in there."""
    sums = {}
    for path in files_of(folder):
        if path.name != MANIFEST:
            with open(path, "rb") as file:
                sums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
