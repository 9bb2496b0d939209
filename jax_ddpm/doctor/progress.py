"""Lines that say what a comparison does, if it takes long."""

import threading
import time
from collections.abc import Callable

QUIET_SECONDS = 5.0


class Progress:
    """Called with each stage. After 5 seconds the current stage and all later ones are logged."""

    def __init__(self, log: Callable[[str], None]):
        self.log, self.stage, self.start = log, "", time.monotonic()
        self.timer = threading.Timer(QUIET_SECONDS, self.show)
        self.timer.daemon = True

    def __call__(self, stage: str) -> None:
        self.stage = stage
        if time.monotonic() - self.start > QUIET_SECONDS:
            self.show()

    def show(self) -> None:
        self.log(f"{self.stage} ... ({time.monotonic() - self.start:.0f} s)")

    def __enter__(self) -> "Progress":
        self.timer.start()
        return self

    def __exit__(self, *_) -> None:
        self.timer.cancel()
