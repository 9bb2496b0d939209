"""Signs of life while the device or the compiler is at work: clocks that go on."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def ticking(bar: tqdm) -> Iterator[None]:
    """Redraw a bar every second (every ten seconds in a log file), so that its clock goes on without a step."""
    done = threading.Event()

    def redraw():
        while not done.wait(1 if sys.stderr.isatty() else 10):
            if time.time() - bar.start_t >= bar.delay:
                bar.delay = 0  # close() then removes what is shown
                bar.refresh()

    thread = threading.Thread(target=redraw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show what is being done, with its seconds, until it is done."""
    with tqdm(desc=what, bar_format="{desc} [{elapsed}]", leave=False) as bar, ticking(bar):
        yield
