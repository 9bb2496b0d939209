"""The processes of one training or drawing: what they tell each other, and how each notices that another has ended.

Process 0 decides and writes everything. The others take the same steps with it, and write nothing. They exchange short
texts through the key-value store of `jax.distributed`, which process 0 serves. Arrays go through JAX's collectives.
"""

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import jax

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line
from jax_ddpm.training.interrupt import Interrupted, SignalHandler
from jax_ddpm.training.start_hosts import continue_with, end_process, say_when_jax_aborts

PERIOD_SECONDS = 1.0  # between two signs of life
DEAD_AFTER_SECONDS = 40.0  # without a sign of life
GONE_SECONDS = 15.0  # process 0 serves the store, so it waits this long for the others to end first
KEPT_TURNS = 16
_runs = itertools.count()


@dataclass(frozen=True)
class Turn:
    """What process 0 decided: the number of steps of the next dispatch, or 0 and the signal that ends the run.

    part: of the state, which all processes then send to process 0, in place of a dispatch; one of `fsdp.PARTS`.
    """

    steps: int
    signal: int | None = None
    part: str | None = None


class ProcessesDiffer(UserError):
    """All processes of a training raise this together."""


class Hosts:
    """This process among those of a training. As a context manager it ends all of them if one of them fails.

    client: JAX's key-value store. index, count: the number of this process and of all. address: of the coordinator.
    signals: of this process. A signal of any process becomes one of process 0, which ends the run for all.
    resume: words of the command that continues the run. task: what the processes do together, for messages.
    """

    def __init__(
        self,
        client,
        index: int,
        count: int,
        address: str,
        signals: SignalHandler,
        resume: list[str],
        task: str = "training",
    ):
        self.client, self.signals = client, signals
        self.index, self.count, self.address = index, count, address
        self.prefix = f"jax_ddpm/{next(_runs)}"
        self.task, self.command, self.resume = task, resume, continue_with(resume)
        self.names = {i: f"Process {i}" for i in range(self.count)}
        self.turns = 0
        self.stopped = False
        self.saving: Callable[[], threading.Thread | None] = lambda: None
        """The thread that writes a checkpoint now, if any. It may finish before this process ends."""
        self.finished = threading.Event()
        self.contact = time.monotonic()
        self.beats: dict[int, tuple[str, float]] = {i: ("", self.contact) for i in range(self.count)}
        """By process: its last sign of life, and when it changed."""

    def __enter__(self) -> "Hosts":
        for target in (self.exchange, self.watch):
            threading.Thread(target=target, daemon=True, name=f"hosts {target.__name__}").start()
        gathered = self.gather("name", socket.gethostname())
        self.names = {i: f"Process {i} (on {name})" for i, name in gathered.items()}
        say_when_jax_aborts(f"{self.names[0]} has ended, or cannot be reached any more.\n{self.resume}")
        return self

    def __exit__(self, kind, error, _) -> None:
        stopped = self.stopped and isinstance(error, Interrupted)
        agreed = error is None or stopped or isinstance(error, ProcessesDiffer)
        if not agreed:
            self.tell_failure(error)
        if self.index == 0:
            self.set("finished", "")
            self.wait_until_others_left()
        elif agreed:
            try:
                self.wait("finished")
            except KeyboardInterrupt as stop:
                self.tell_failure(stop)
                raise
        self.finished.set()
        self.say_left()

    # Texts

    def set(self, key: str, text: str) -> None:
        self.client.key_value_set(f"{self.prefix}/{key}", text, allow_overwrite=True)

    def wait(self, key: str) -> str:
        """The text of a key, as soon as a process has set it. Signals are handled in the meantime."""
        while True:
            try:
                return self.client.blocking_key_value_get(f"{self.prefix}/{key}", 1000)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def entries(self, key: str) -> dict[str, str]:
        """The texts below a key, by the last part of their key."""
        return {path.rpartition("/")[2]: text for path, text in self.client.key_value_dir_get(f"{self.prefix}/{key}/")}

    def gather(self, key: str, text: str) -> dict[int, str]:
        """The texts of all processes, by their numbers."""
        self.set(f"{key}/{self.index}", text)
        return {i: self.wait(f"{key}/{i}") for i in range(self.count)}

    # Agreement

    def compare(self, key: str, values: Mapping[str, object], advice: str) -> None:
        """Raises the same UserError in all processes, which names every value that differs between them."""
        gathered = {i: json.loads(text) for i, text in self.gather(key, json.dumps(values, default=str)).items()}
        if found := differences(gathered, self.names):
            raise ProcessesDiffer(f"The processes of this {self.task} differ: {found}.\n{advice}")

    def announce(self, steps: int, part: str | None = None) -> None:
        """Process 0: tell the others how many steps the next dispatch has; 0: there is none.

        part: the others send this part of the state now; steps is then 0, and the training goes on.
        """
        number = self.signals.signal_number if not steps and part is None else None
        self.stopped = number is not None
        self.set(f"turn/{self.turns}", json.dumps([steps, number, part]))
        if self.turns >= KEPT_TURNS:  # the others are at most two dispatches behind
            self.client.key_value_delete(f"{self.prefix}/turn/{self.turns - KEPT_TURNS}")
        self.turns += 1

    def next_turn(self) -> Turn:
        """Another process: what `announce` told."""
        turn = Turn(*json.loads(self.wait(f"turn/{self.turns}")))
        self.turns += 1
        self.stopped = turn.signal is not None
        return turn

    # Signs of life

    def exchange(self) -> None:
        """A thread: give signs of life and a signal of this process, and read those of the others."""
        for beat in itertools.count():
            with suppress(jax.errors.JaxRuntimeError):
                self.set(f"alive/{self.index}", str(beat))
                number = self.signals.signal_number
                if number is not None and self.signals.deferred and self.index:
                    self.set(f"signal/{self.index}", str(number))
                alive, failed, signals = (self.entries(key) for key in ("alive", "failed", "signal"))
                now = self.contact = time.monotonic()
                for i, text in alive.items():
                    if self.beats[int(i)][0] != text:
                        self.beats[int(i)] = text, now
                for i, (text, can_resume) in ((i, json.loads(text)) for i, text in failed.items()):
                    if int(i) != self.index and not self.finished.is_set():
                        self.say_left()
                        self.end(f"{self.names[int(i)]} has ended: {text}", can_resume)
                if signals and self.index == 0 and self.signals.signal_number is None:
                    self.signals.signal_number = int(next(iter(signals.values())))
            if self.finished.wait(PERIOD_SECONDS):
                return

    def watch(self) -> None:
        """A thread: end this process when another has given no sign of life for DEAD_AFTER_SECONDS.

        It does not use the store, which may not answer.
        """
        previous = time.monotonic()
        while not self.finished.wait(PERIOD_SECONDS):
            now = time.monotonic()
            if now - previous > 5 * PERIOD_SECONDS:  # this process itself was suspended
                self.contact, self.beats = now, {i: (text, now) for i, (text, _) in self.beats.items()}
            previous = now
            silent = f"has given no sign of life for {DEAD_AFTER_SECONDS:.0f} s"
            if now - self.contact > DEAD_AFTER_SECONDS:
                self.end(f"{self.names[0]}, which serves {self.address}, {silent}.")
            for i, (_, changed) in self.beats.items():
                if i != self.index and now - changed > DEAD_AFTER_SECONDS and now - self.contact < DEAD_AFTER_SECONDS:
                    if self.index == 0:
                        time.sleep(3 * PERIOD_SECONDS)  # until the others, which need the store, have noticed it too
                    self.end(f"{self.names[i]} {silent}.")

    def end(self, reason: str, can_resume: bool = True) -> None:
        """End this process because of another one. A checkpoint that is being written is finished first."""
        if writer := self.saving():
            writer.join(GONE_SECONDS / 2)
        end_process(f"{reason}\n{self.resume}" if can_resume else reason)

    def tell_failure(self, error: BaseException) -> None:
        """Tell the other processes why this one ends.

        An error in a computation of all processes often means that another one has ended. Then `watch` finds out
        which, and ends this process while it waits here.
        """
        in_computation = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
        if in_computation:
            time.sleep(DEAD_AFTER_SECONDS + 5 * PERIOD_SECONDS)
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
        if isinstance(error, KeyboardInterrupt):
            text = f"it was stopped by signal {getattr(error, 'number', 2)}"
        with suppress(jax.errors.JaxRuntimeError):
            self.set(f"failed/{self.index}", json.dumps([text, not isinstance(error, UserError)]))

    def say_left(self) -> None:
        with suppress(jax.errors.JaxRuntimeError):
            self.set(f"left/{self.index}", "")

    def wait_until_others_left(self) -> None:
        end = time.monotonic() + GONE_SECONDS
        with suppress(jax.errors.JaxRuntimeError):
            while len(self.entries("left").keys() - {"0"}) < self.count - 1 and time.monotonic() < end:
                time.sleep(PERIOD_SECONDS / 10)
        time.sleep(PERIOD_SECONDS)  # until they have printed their last line

    def raise_if_stopped(self, turn: Turn) -> None:
        """Raises Interrupted if the run was ended by a signal of any process."""
        if turn.signal is not None:
            raise Interrupted(turn.signal, self.signals.message)


def differences(values: Mapping[int, Mapping[str, object]], names: Mapping[int, str]) -> str:
    """The values that differ between processes, each with those of process 0 and of the first other; "" if none.

    values: by process, by name. names: of the processes.
    """
    found = []
    for name in {name: None for each in values.values() for name in each}:
        first = values[0].get(name)
        other = next((i for i, each in values.items() if each.get(name) != first), None)
        if other is not None:
            found.append(f"{name} is {first} in {lower(names[0])}, {values[other].get(name)} in {lower(names[other])}")
    return "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")


def lower(name: str) -> str:
    return name[0].lower() + name[1:]
