"""Checkpoints of a run: `checkpoints/<step>/`, written by Orbax, everything needed to go on bit for bit."""

import warnings
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from jax_ddpm.errors import UserError
from jax_ddpm.training.state import TrainState


class Checkpoints:
    """The newest `keep` checkpoints of a run's folder; one that is not complete does not count."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: TrainState, pending: list[dict]) -> None:
        """`pending`: metrics of the steps since the last row of metrics.jsonl, which belong to the next row."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(as_dict(state)), pending=ocp.args.JsonSave(pending))
        self.manager.save(step, args=args, force=True)  # returns once the state is copied; writes in the background

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, list[dict]]:
        """The state at `step`, with the structure, dtypes and placement of `like`. UserError if it does not fit."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, as_dict(like))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), pending=ocp.args.JsonRestore())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                restored = self.manager.restore(step, args=args)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"Checkpoint {step} of {self.manager.directory} cannot be restored: {error}.") from None
        leaves = jax.tree.leaves(restored["state"])
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        # Orbax's arrays are not always donatable (jax#18617); those that come out of a jitted function are.
        return jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 0 if leaf.dtype != bool else leaf, x))(
            state
        ), restored["pending"]

    def close(self) -> None:
        """Wait for what is being written."""
        self.manager.close()


def as_dict(state: TrainState) -> dict:
    """A flat dict in the order of the state's leaves, so that files do not depend on Flax's or optax's classes."""
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {f"{number:04d} {jax.tree_util.keystr(path)}": leaf for number, (path, leaf) in enumerate(paths)}
