"""SIGINT and SIGTERM: the first lets a run finish the steps under way and save, the second ends it at once."""

import os
import signal
import sys
import threading


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; `number` is the signal's, and the text says how to go on."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class Interruption:
    """While this context is open, a signal raises Interrupted with `message`.

    While `deferring`, it sets `number` instead, and only a second one ends the process, at once. In a thread other than
    the main one none of this happens, since only that one may handle signals.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.message = "Stopped before the training began."
        self.deferring = False
        self.number: int | None = None
        self.before: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame) -> None:
        if self.number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number = number
        if not self.deferring:
            raise Interrupted(number, self.message)
        print("\nFinishing this step and saving; a second signal stops at once.", file=sys.stderr, flush=True)

    def end_of_deferring(self) -> None:
        """Raises Interrupted if a signal has come."""
        self.deferring = False
        if self.number is not None:
            raise Interrupted(self.number, self.message)
