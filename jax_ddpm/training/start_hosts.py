"""Joins this process to the others of a training or drawing over several processes, by `jax.distributed`.

Importing this module does not import jax.
"""

import atexit
import ctypes
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import tyro

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line

WAIT_SECONDS = 300  # for the coordinator and all other processes, at the start
COORDINATOR, PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@dataclass(frozen=True)
class HostFlags:
    """Work of several processes, on one or several hosts."""

    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Work together with other processes that have the same flags. Under SLURM and on TPU pods they find each other.
    Elsewhere give --coordinator, --processes and --process-id, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID."""
    coordinator: str | None = None
    """Host and port of process 0, for example 10.0.0.1:8476."""
    processes: int | None = None
    """Number of all processes."""
    process_id: int | None = None
    """Number of this process, from 0."""

    def resolved(self, environment: Mapping[str, str]) -> "HostFlags":
        """The flags, with values from the environment for those that are not given. Raises UserError."""
        explicit = {"coordinator": self.coordinator, "processes": self.processes, "process-id": self.process_id}
        given = [f"--{name}" for name, value in explicit.items() if value is not None]
        if not self.distributed:
            if given:
                raise UserError(f"{given[0]} is for work of several processes: add --distributed.")
            return self
        found = HostFlags(
            True,
            self.coordinator or environment.get(COORDINATOR),
            self.processes if self.processes is not None else number(environment, PROCESSES),
            self.process_id if self.process_id is not None else number(environment, PROCESS_ID),
        )
        found.check()
        return found

    def check(self) -> None:
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise UserError(
                    f"--coordinator {self.coordinator}: expected host and port of process 0, such as 10.0.0.1:8476."
                )
        if self.processes is not None and self.processes < 1:
            raise UserError(f"--processes {self.processes}: expected the number of all processes, at least 1.")
        if self.process_id is not None and self.process_id < 0:
            raise UserError(f"--process-id {self.process_id}: expected the number of this process, from 0.")
        if None not in (self.processes, self.process_id) and self.process_id >= self.processes:
            raise UserError(
                f"--process-id {self.process_id}: expected 0 to {self.processes - 1}, for {self.processes} processes."
            )

    @property
    def is_complete(self) -> bool:
        return None not in (self.coordinator, self.processes, self.process_id)

    def arguments(self) -> list[str]:
        """The flags as words of a command."""
        values = {"coordinator": self.coordinator, "processes": self.processes, "process-id": self.process_id}
        given = [(f"--{name}", str(value)) for name, value in values.items() if value is not None]
        return ["--distributed"] * self.distributed + [word for pair in given for word in pair]


started_with = HostFlags()
"""The flags with which this process joined the others; those of one process alone before that."""


def number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is not None and not text.isdecimal():
        raise UserError(f"{name}={text}: expected a number, from 0.")
    return None if text is None else int(text)


def join(flags: HostFlags, environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, if the flags say so. Call it before JAX starts its devices.

    Signals stay with `SignalHandler` of a run: JAX's own service for preemptions is off.

    Raises UserError if flags are wrong or missing, or if the coordinator cannot be reached within WAIT_SECONDS. Ends
    the process with exit code 2 and a line if other processes have not come by then.
    """
    global started_with
    seconds = WAIT_SECONDS
    found = flags.resolved(environment)
    if not found.distributed:
        return
    import jax

    if found.is_complete and found.process_id > 0:
        wait_for_coordinator(found.coordinator, seconds)
    jax.config.update("jax_enable_preemption_service", False)
    say_when_jax_aborts("JAX could not join this process to the others. Its reason is above.")
    try:
        with end_after(seconds, lambda: missing_processes(found, seconds)):
            jax.distributed.initialize(
                found.coordinator,
                found.processes,
                found.process_id,
                cluster_detection_method="deactivate" if found.is_complete else None,
                initialization_timeout=int(seconds) + 60,
                shutdown_timeout_seconds=30,
            )
    except (ValueError, TypeError) as error:
        missing = [flag for flag in ("coordinator", "processes", "process-id") if f"--{flag}" not in found.arguments()]
        raise UserError(
            f"The processes cannot find each other ({one_line(error)}).\n"
            f"Give --{', --'.join(missing)}, or start the processes under SLURM or on a TPU pod."
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"{found.coordinator or 'The coordinator'}: the processes could not be joined ({one_line(error)}).\n"
            "Choose another port for --coordinator if this one is taken."
        ) from None
    started_with = flags


def leave() -> None:
    """Leave the other processes, after all have finished."""
    import jax

    with suppress(RuntimeError):
        jax.distributed.shutdown()


@contextmanager
def left_by_all():
    """Inside this context, several processes work together. At its end they leave JAX's runtime, or end at once.

    After a failure they cannot leave together. JAX would wait for the others, and then abort the process.
    """
    try:
        yield
    except BaseException as error:
        code = 128 + getattr(error, "number", 2) if isinstance(error, KeyboardInterrupt) else 2
        atexit.register(end_at_once, code)  # runs before JAX's own, and after the message was printed
        raise
    leave()


def end_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for_coordinator(address: str, seconds: float) -> None:
    """Wait until process 0 takes connections. Raises UserError after `seconds`."""
    host, _, port = address.rpartition(":")
    start = time.monotonic()
    announced = False
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            waited = time.monotonic() - start
            if waited >= seconds:
                raise UserError(
                    f"The coordinator {address} cannot be reached ({error.strerror or one_line(error)}), for "
                    f"{seconds:.0f} s.\nStart process 0 on that host, and open this port for the other hosts."
                ) from None
        if waited > 10 and not announced:
            print(f"Waiting for the coordinator {address} ...", file=sys.stderr, flush=True)
            announced = True
        time.sleep(min(1.0, seconds / 4))


def missing_processes(flags: HostFlags, seconds: float) -> str:
    count = flags.processes or "all"
    return (
        f"Not {'all of the ' if flags.processes else ''}{count} processes came within {seconds:.0f} s.\n"
        "Start the same command on every host, with another --process-id on each where these are given."
    )


@contextmanager
def end_after(seconds: float, message: Callable[[], str]):
    """End the process with a message if this context is still open after `seconds`: JAX would abort it."""
    timer = threading.Timer(seconds, lambda: end_process(message()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(message: str) -> None:
    """Write a message and end the process at once. The main thread may be waiting in a computation of all processes."""
    with suppress(OSError):
        os.write(2, f"\n{message}\n".encode())
    os._exit(2)


def continue_with(command: list[str], what: str = "continue") -> str:
    """How to go on after a process ended, for its last line. command: its words, such as `jax-ddpm train --resume`."""
    arguments = started_with.arguments()
    every = " on every host, each with its own --process-id" if "--process-id" in arguments else " on every host"
    return f"To {what}{every if arguments else ''}: {shlex.join([*command, *arguments])}"


_abort_message = ""
_handler = None  # ctypes keeps no reference to it


def say_when_jax_aborts(message: str) -> None:
    """End the process with this message and exit code 2 where JAX's runtime would abort it.

    It aborts a process as soon as it loses process 0, from a thread of its own, after a trace of C++ functions. Python
    cannot prevent that, so this handles the signal SIGABRT in C.
    """
    global _abort_message, _handler
    _abort_message = message
    if _handler is not None or os.name != "posix":
        return
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _handler = kind(lambda _: end_process(_abort_message))
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, kind], ctypes.c_void_p
    set_handler(signal.SIGABRT, _handler)
