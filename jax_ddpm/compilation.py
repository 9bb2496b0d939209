"""What XLA compiled is kept on disk, so that the next start need not compile it again; what compiling left is not.

Does not import jax.
"""

import functools
import gc
import os
import zlib
from pathlib import Path

from jax_ddpm.cpu.flags import cpu_features
from jax_ddpm.data.cache import default_dir
from jax_ddpm.cpu.memory import settle_memory

LONG = 1.0  # seconds of compiling, after which settling memory, a third of a second, is worth while
NOTABLE = 0.1  # seconds of compiling, or of reading what was kept, which leave many objects


def keep_compiled() -> Path | None:
    """Tell JAX, before it is imported, to keep its programs in ~/.cache/jax_ddpm/compiled; the folder.

    Changes nothing, and returns None, where JAX_COMPILATION_CACHE_DIR is set (to nothing: no cache) or the folder
    cannot be written. Programs that call back into Python are never kept, nor what a process compiles after its first
    call of `onednn`.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    folder = default_dir() / "compiled" / f"{zlib.crc32(cpu_features()):08x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # of what compiled longer; JAX's own: 1
    return folder


@functools.cache
def tidy_after_compiling() -> None:
    """From now on give back what compiling took and `malloc.keep_freed_memory` would keep: up to gigabytes.

    And hold the small pieces that it left free (`malloc.settle_memory`), and keep Python's garbage collector away from
    what tracing left alive: else it looks at all of that again every few dozen steps, for up to a quarter of a second
    in which one core less computes.
    """
    import jax  # not before it is wanted

    def told(event: str, seconds: float, **_) -> None:
        if event != "/jax/core/compile/backend_compile_duration":
            return
        if seconds > NOTABLE:
            spare_the_living()
        if seconds > LONG:
            settle_memory()

    jax.monitoring.register_event_duration_secs_listener(told)


def spare_the_living() -> None:
    """Python's garbage collector no longer looks at the objects that live now; reference counts still free them."""
    gc.collect()
    gc.freeze()
