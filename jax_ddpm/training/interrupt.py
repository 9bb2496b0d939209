"""SIGINT, SIGTERM and SIGHUP: after the first, a run finishes its steps in flight and saves; the second ends it."""

import os
import signal
import stat
import sys
import threading
from contextlib import suppress

SIGHUP: int | None = getattr(signal, "SIGHUP", None)  # None on Windows


class Interrupted(KeyboardInterrupt):
    """A signal ended the run. `number` is the signal's number; the message says how to resume."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class SignalHandler:
    """A context in which a signal raises `Interrupted` with `message`.

    While `deferred` is True, the first signal only sets `signal_number`, and a second one ends the process at once.
    SIGHUP, which a closed terminal sends, is handled unless it was ignored before, as by nohup.
    Outside the main thread this does nothing: Python handles signals only in the main thread.
    """

    def __init__(self):
        self.message = "Stopped before the training began."
        self.deferred = False
        self.signal_number: int | None = None
        self.previous_handlers: dict = {}
        self.previous_wakeup_fd = -1

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN:
                numbers.append(SIGHUP)
            self.previous_wakeup_fd = signal.set_wakeup_fd(-1)  # the commands' own rule for Ctrl-C does not apply
            self.previous_handlers = {number: signal.signal(number, self.handle) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        if self.previous_handlers:
            signal.set_wakeup_fd(self.previous_wakeup_fd)

    def handle(self, number: int, frame) -> None:
        if self.signal_number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_number = number
        if number == SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # a closed terminal can send it twice
            discard_output()
        if not self.deferred:
            raise Interrupted(number, self.message)
        print("\nFinishing this step and saving; a second signal stops at once.", file=sys.stderr, flush=True)

    def raise_if_signalled(self) -> None:
        """Stop deferring signals. Raises Interrupted if a signal has arrived."""
        self.deferred = False
        if self.signal_number is not None:
            raise Interrupted(self.signal_number, self.message)


def discard_output() -> None:
    """Discard what is still printed, except to files: the terminal is gone, and printing to it raises OSError."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):
            if not stat.S_ISREG(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
