"""Drawing by several processes: each draws a part of every batch, and all get the whole batch.

Image i of a seed does not depend on its batch, so the images are those of one process, up to rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import numpy as np
from jax.experimental import multihost_utils

_draws_together = ContextVar("draws_together", default=False)


@contextmanager
def drawing_together() -> Iterator[None]:
    """Inside this context all processes of `jax.distributed` draw the same images at the same time, a part each.

    Outside, each process draws by itself: a training draws its pictures in process 0 alone.
    """
    token = _draws_together.set(True)
    try:
        yield
    finally:
        _draws_together.reset(token)


def num_drawing() -> int:
    """The number of processes that draw the images of this one."""
    return jax.process_count() if _draws_together.get() else 1


def writes() -> bool:
    """Whether this process writes what is drawn."""
    return num_drawing() == 1 or jax.process_index() == 0


def own_part(indices: np.ndarray, process: int, count: int) -> np.ndarray:
    """The indices that one of `count` processes draws: equally many for each, the last index repeated."""
    size = -(-len(indices) // count)
    return indices[np.minimum(np.arange(process * size, (process + 1) * size), len(indices) - 1)]


def drawn_by_all(draw: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """draw(indices) -> (B, ...), of which each process computes its part."""

    def draw_together(indices: np.ndarray) -> np.ndarray:
        part = np.asarray(draw(own_part(indices, jax.process_index(), num_drawing())))
        return np.asarray(multihost_utils.process_allgather(part, tiled=True))[: len(indices)]

    return draw_together
