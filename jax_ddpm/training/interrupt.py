"""SIGINT and SIGTERM: after the first, a run finishes its steps in flight and saves; the second ends it at once."""

import os
import signal
import sys
import threading


class Interrupted(KeyboardInterrupt):
    """A signal ended the run. `number` is the signal's number; the message says how to resume."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class SignalHandler:
    """A context in which a signal raises `Interrupted` with `message`.

    While `deferred` is True, the first signal only sets `signal_number`, and a second one ends the process at once.
    Outside the main thread this does nothing: Python handles signals only in the main thread.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.message = "Stopped before the training began."
        self.deferred = False
        self.signal_number: int | None = None
        self.previous_handlers: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.previous_handlers = {number: signal.signal(number, self.handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame) -> None:
        if self.signal_number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_number = number
        if not self.deferred:
            raise Interrupted(number, self.message)
        print("\nFinishing this step and saving; a second signal stops at once.", file=sys.stderr, flush=True)

    def raise_if_signalled(self) -> None:
        """Stop deferring signals. Raises Interrupted if a signal has arrived."""
        self.deferred = False
        if self.signal_number is not None:
            raise Interrupted(self.signal_number, self.message)
