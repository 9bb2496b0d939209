"""`--distributed` of `jax-ddpm sample` and `jax-ddpm evaluate`: several processes draw one set of images."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING

from jax_ddpm.spec.errors import UserError
from jax_ddpm.training.start_hosts import HostFlags, continue_with, join, left_by_all

if TYPE_CHECKING:
    from jax_ddpm.training.hosts import Hosts
    from jax_ddpm.weights.model import Model

OF_ONE_HOST = {"hosts", "model", "out", "overwrite", "image", "mask", "guide", "subject", "reference", "imports"}
OF_ONE_HOST |= {"data", "save_reference", "plot", "nearest"}
"""Flags with paths, which may differ between hosts. The weights are compared."""
ADVICE = "Give all of them the same flags and model, and install the same versions."


@contextmanager
def together(command: str, flags, arguments: Sequence[str]) -> Iterator["Hosts | None"]:
    """A context in which the processes of --distributed draw together. None without it, or for a single process.

    Only process 0 prints. If a process fails, all end. Raises UserError in all if their flags or versions differ.

    command, arguments: as the user gave them. flags: parsed, with `hosts`.
    """
    if not flags.hosts.resolved(os.environ).distributed:
        yield None
        return
    join(flags.hosts)
    import jax
    from jax._src.distributed import global_state  # JAX has no public name for the key-value store

    from jax_ddpm.sampling.processes import drawing_together
    from jax_ddpm.training.follow import versions
    from jax_ddpm.training.hosts import Hosts
    from jax_ddpm.training.interrupt import SignalHandler

    with left_by_all(), SignalHandler() as signals:
        signals.message = "Stopped."
        if jax.process_count() == 1:
            yield None
            return
        words = ["jax-ddpm", command, *without_hosts(arguments)]
        here = jax.process_index(), jax.process_count(), global_state.coordinator_address
        with Hosts(global_state.client, *here, signals, words, task="drawing") as hosts:
            hosts.resume = continue_with(words, "start again")
            hosts.compare("settings", {**settings(asdict(flags)), **versions()}, ADVICE)
            with drawing_together(), silent() if hosts.index else nullcontext():
                yield hosts


def settings(values: dict) -> dict[str, object]:
    """The flags that all processes must have in common, by name."""
    found = {}
    for name, value in values.items():
        if name not in OF_ONE_HOST:
            found |= settings(value) if isinstance(value, dict) else {name: value}
    return found


def compare_weights(hosts: "Hosts | None", model: "Model") -> None:
    """Raises UserError in all processes if they have loaded other weights or settings of the model."""
    if hosts is not None:
        from jax_ddpm.evaluation.samples import weights_fingerprint

        values = {"the diffusion": str(model.info.diffusion), "the weights": weights_fingerprint(model)[:12]}
        hosts.compare("model", values, ADVICE)


def without_hosts(arguments: Sequence[str]) -> list[str]:
    """The arguments without those of `HostFlags`, which `continue_with` adds."""
    kept, skip = [], False
    for argument in arguments:
        name = argument.partition("=")[0]
        if not skip and name not in ("--distributed", "--coordinator", "--processes", "--process-id"):
            kept.append(argument)
        skip = not skip and "=" not in argument and name in ("--coordinator", "--processes", "--process-id")
    return kept


@contextmanager
def silent() -> Iterator[None]:
    """Inside this context nothing is printed."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def refuse_together(hosts: HostFlags, given: dict[str, object]) -> None:
    """UserError for flags that do not go with --distributed. given: whether each is given, by how it is written."""
    for words, is_given in given.items():
        if hosts.distributed and is_given:
            raise UserError(f"{words} is drawn in one process: omit --distributed.")
