"""How far an evaluation is: a function that is called with what is computed, and progress bars that are one."""

from collections.abc import Callable
from contextlib import ExitStack

from tqdm import tqdm

from jax_ddpm.waiting import ticking

Progress = Callable[[str, int, int], None]
"""Called with what is computed, how much of it is done, and how much there is."""


def named(what: str, total: int, progress: Progress | None) -> Callable[[int], None] | None:
    """A function of the number that is done, which calls `progress`; None without it."""
    return None if progress is None else lambda done: progress(what, min(done, total), total)


class Bars:
    """A progress bar for each thing that is computed. It is shown if it takes more than half a second, or at once if it
    has one step."""

    def __init__(self):
        self.bar: tqdm | None = None
        self.what = ""
        self.clock = ExitStack()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.bar is None or self.what != what:
            self.close()
            self.what, self.bar = what, tqdm(total=total, desc=what, delay=0.5 * (total > 1), leave=False)
            self.clock.enter_context(ticking(self.bar))
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self.clock.close()
        if self.bar is not None:
            self.bar.close()
        self.bar = None
