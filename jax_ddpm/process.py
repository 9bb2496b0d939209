"""Set up the process for JAX: flags of XLA, malloc, and the cache of compiled programs.

Importing this module does not import jax.
"""

import functools
import importlib.metadata
import importlib.util
import os
import sys
import zlib
from pathlib import Path

from jax_ddpm.cpu.flags import cpu_features, set_cpu_flags
from jax_ddpm.cpu.memory import keep_freed_memory, settle_memory
from jax_ddpm.spec.files import cache_dir

LONG_COMPILATION = 1.0  # seconds, from which on `settle_memory`, a third of a second, is worth its time


def prepare_process() -> None:
    """Make JAX fast on this machine; the results stay the same up to rounding.

    Where JAX will compute on the CPU: sets XLA's flags for CPUs in XLA_FLAGS and tells malloc to keep freed memory. XLA
    reads its flags when JAX first computes something, so this has to be called before. Where jax is imported already,
    also settles memory after each long compilation. The commands and the benchmark call this before they import jax;
    `jax_ddpm.ops`, which all computations need, calls it again. Calling it twice changes nothing.
    """
    if computes_on_cpu():
        set_cpu_flags()
        keep_freed_memory()
        if "jax" in sys.modules:
            settle_memory_after_compilation()


def computes_on_cpu() -> bool:
    """Whether JAX will choose the CPU: by JAX_PLATFORMS, or else because no plugin for an accelerator is installed.

    The flags for CPUs must not be set elsewhere: a plugin for GPUs or TPUs ends the process at a flag that it does not
    know.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms.split(",")[0].strip() == "cpu"
    if importlib.util.find_spec("libtpu") or importlib.util.find_spec("jax_plugins"):
        return False
    return not importlib.metadata.entry_points(group="jax_plugins")


@functools.cache
def settle_memory_after_compilation() -> None:
    """From now on, call `settle_memory` after every compilation that took long: compiling takes up to gigabytes."""
    import jax  # when called, so that importing this module stays light

    def listener(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and seconds > LONG_COMPILATION:
            settle_memory()

    jax.monitoring.register_event_duration_secs_listener(listener)


def use_compilation_cache() -> Path | None:
    """Tell JAX, before it is imported, to keep compiled programs in ~/.cache/jax_ddpm/compiled. Returns the folder.

    Changes nothing, and returns None, where JAX_COMPILATION_CACHE_DIR is set (an empty value means no cache) or the
    folder cannot be written. JAX never caches programs that call back into Python, nor what a process compiles after
    its first call of `jax_ddpm.cpu.onednn`.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    folder = cache_dir() / "compiled" / f"{zlib.crc32(cpu_features()):08x}"  # one per kind of CPU
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # JAX's default is 1 second
    return folder
