"""Checkpoints of a run: `checkpoints/<step>/`, everything needed to resume bit for bit.

Each folder holds `state/` (written by Orbax), `record.json` (the loop's values outside the state) and `manifest.json`
(the SHA-256 of every other file). It is written under a temporary name and renamed once it is complete.
"""

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
from jax_ddpm.spec.run_checkpoints import MANIFEST, RECORD, STATE, checksums, files_of, find_damage
from jax_ddpm.spec.run_config import OutputConfig
from jax_ddpm.spec.text import one_line
from jax_ddpm.training.state import TrainState


class Checkpoints:
    """The checkpoints in a folder. A thread writes them, one at a time, and then deletes old ones.

    Keeps the newest `keep_checkpoints` checkpoints and those whose step is a multiple of `keep_every` (0: none). Also
    keeps every checkpoint that the record of one of these names as the best. A failed write is reported through `log`,
    and the earlier checkpoints stay. Use it as a context manager: on exit it waits until the current write has ended.
    """

    def __init__(self, folder: Path, config: OutputConfig, log: Callable[[str], None]):
        self.folder, self.log = folder.absolute(), log
        self.keep_newest, self.keep_every = config.keep_checkpoints, config.keep_every
        self.writer: threading.Thread | None = None
        self.problem: str | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.wait()

    def remove_incomplete(self) -> None:
        """Delete the half-written checkpoints of a killed run."""
        for path in self.folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps of the existing checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def save(self, step: int, state: TrainState, record: dict) -> None:
        """Copy the state to the host, and write the checkpoint in a thread.

        record: a dict that JSON can hold. If record["best"] is a dict with a "step", that step's checkpoint is kept.
        """
        self.wait()
        leaves = flatten_state(state)
        for leaf in leaves.values():
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()  # starts all copies before the first one is waited for
        copy = {name: np.array(leaf) for name, leaf in leaves.items()}  # the next step donates the state's own memory
        self.writer = threading.Thread(target=self.write, args=(step, copy, json.dumps(record)))
        self.writer.start()

    def write(self, step: int, arrays: dict[str, np.ndarray], record: str) -> None:
        """Write a complete checkpoint, or set `problem`."""
        draft, folder = self.folder / f".{step}", self.folder / str(step)
        try:
            draft.mkdir(parents=True, exist_ok=True)
            check_disk_space(draft, sum(array.nbytes for array in arrays.values()))
            with open_checkpointer() as checkpointer:
                checkpointer.save(draft / STATE, args=ocp.args.StandardSave(arrays), force=True)
            (draft / RECORD).write_text(record, encoding="utf-8")
            (draft / MANIFEST).write_text(json.dumps(checksums(draft), indent=1), encoding="utf-8")
            for path in files_of(draft):
                with open(path, "r+b") as file:  # Windows syncs only files that are open for writing
                    os.fsync(file.fileno())
            if folder.exists():
                self.remove(step)
            os.replace(draft, folder)
            self.prune()
        except Exception as error:  # Orbax wraps system errors in many classes
            self.problem = f"The checkpoint of step {step:,} could not be saved ({one_line(error)})."
            shutil.rmtree(draft, ignore_errors=True)

    def prune(self) -> None:
        """Delete the checkpoints that are not to be kept."""
        steps = self.steps()
        kept = set(steps[-self.keep_newest :])
        kept |= {step for step in steps if self.keep_every and step % self.keep_every == 0}
        for step in set(steps) - kept - {self.best(step) for step in kept}:
            self.remove(step)

    def best(self, step: int) -> int | None:
        """The best step according to the record of the checkpoint at `step`, or None."""
        try:
            return json.loads((self.folder / str(step) / RECORD).read_text(encoding="utf-8"))["best"]["step"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self, step: int) -> None:
        removed = self.folder / f".{step}.removed"
        os.replace(self.folder / str(step), removed)  # a partly deleted folder never has the name of a checkpoint
        shutil.rmtree(removed, ignore_errors=True)

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint is being written now."""
        return self.writer is not None and self.writer.is_alive()

    def wait(self) -> None:
        """Wait for the write in progress, and log its problem if it failed."""
        if self.writer is not None:
            self.writer.join()
        if self.problem is not None:
            steps = self.steps()
            rest = f"the newest checkpoint is of step {steps[-1]:,}" if steps else "there is no checkpoint yet"
            self.log(f"{self.problem} Training continues; {rest}.")
            self.problem = None

    def find_damage(self, step: int) -> str | None:
        """Compare a checkpoint's files with their checksums: the differences as text, or None if all match."""
        return find_damage(self.folder / str(step))

    def restore_newest(self, template: TrainState, max_step: int | None = None) -> tuple[int, TrainState, dict] | None:
        """(step, state, record) of the newest undamaged checkpoint up to `max_step`, or None if there is no checkpoint.

        Damaged checkpoints are logged and skipped. Raises UserError if all are damaged, or if the state does not have
        the structure of `template`.
        """
        steps = [step for step in self.steps() if max_step is None or step <= max_step]
        for step in reversed(steps):
            problem = self.find_damage(step)
            if problem is None:
                return step, *self.restore(step, template)
            self.log(f"The checkpoint of step {step:,} is damaged and skipped: {problem}.")
        if steps:
            raise UserError(f"All checkpoints in {self.folder} are damaged. Start a new run with another --out.")
        return None

    def restore(self, step: int, template: TrainState) -> tuple[TrainState, dict]:
        """(state, record) of the checkpoint at `step`; the state gets the shardings and dtypes of `template`.

        Raises UserError if the state does not have the structure of `template`.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, flatten_state(template))
        folder = self.folder / str(step)
        try:
            with warnings.catch_warnings(), open_checkpointer() as checkpointer:
                warnings.simplefilter("ignore")
                restored = checkpointer.restore(folder / STATE, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"The checkpoint {folder} cannot be restored: {one_line(error)}.") from None
        arrays = [restored[name] for name in target]
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        # Orbax's arrays cannot always be donated (jax#18617); the outputs of a jitted function can.
        shardings = [getattr(array, "sharding", None) for array in arrays]
        arrays = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=shardings)(arrays)
        return jax.tree.unflatten(jax.tree.structure(template), arrays), record


def open_checkpointer() -> ocp.Checkpointer:
    """Orbax's writer and reader of one checkpoint.

    In a training of several processes only process 0 calls it, in a thread. So Orbax must not wait for the others.
    """
    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.StandardCheckpointHandler())
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def flatten_state(state: TrainState) -> dict:
    """The state's arrays in a flat dict, so that files do not depend on classes of Flax or optax."""
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {f"{number:04d} {jax.tree_util.keystr(path)}": leaf for number, (path, leaf) in enumerate(paths)}


def check_disk_space(folder: Path, size: int) -> None:
    """Raises OSError if the disk has no room for `size` more bytes. Orbax's own message would be long."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
