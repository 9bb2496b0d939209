"""Set up the process for JAX: XLA flags, malloc, and the cache of compiled programs.

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
from jax_ddpm.cpu.memory import keep_freed_memory, trim_and_hold_free_blocks
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import cache_dir
from jax_ddpm.spec.text import one_line

TRIM_AFTER_SECONDS = 1.0  # trim memory after compilations that take longer than this; trimming takes 0.3 seconds


def prepare_process() -> None:
    """Make JAX fast on this machine. Results change only by rounding. Calling it again changes nothing.

    If JAX will compute on the CPU: adds flags to XLA_FLAGS and tells malloc to keep freed memory. If jax is already
    imported, memory is also trimmed after each long compilation. XLA reads its flags when JAX first computes something.
    So the commands and the benchmark call this before they import jax, and `jax_ddpm.ops` calls it when it is imported.
    """
    if computes_on_cpu():
        set_cpu_flags()
        keep_freed_memory()
        if "jax" in sys.modules:
            trim_memory_after_compilation()


def computes_on_cpu() -> bool:
    """Whether JAX will use the CPU: JAX_PLATFORMS says so, or it is not set and no accelerator plugin is installed.

    Only then may the flags for CPUs be set: a plugin for GPUs or TPUs aborts the process on a flag that it does not
    know.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms.split(",")[0].strip() == "cpu"
    if importlib.util.find_spec("libtpu") or importlib.util.find_spec("jax_plugins"):
        return False
    return not importlib.metadata.entry_points(group="jax_plugins")


def check_devices() -> None:
    """Start JAX's devices. Raises UserError if that fails, for example if JAX_PLATFORMS names a device that is missing.

    JAX starts its devices when it first computes something. Its own error is an AssertionError without a message if
    JAX_PLATFORMS is cuda and there is no GPU.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error, 300) if str(error) else "none is visible"
        if chosen := jax.config.jax_platforms:
            raise UserError(
                f"JAX_PLATFORMS={chosen}: JAX cannot use this kind of device ({reason}).\n"
                "Install JAX for it (pip install 'jax-ddpm[cuda]' or 'jax-ddpm[tpu]'), or set JAX_PLATFORMS=cpu."
            ) from None
        raise UserError(
            f"JAX cannot start its devices ({reason}).\n"
            "Set JAX_PLATFORMS=cpu to compute on the CPU, or install JAX again."
        ) from None


@functools.cache
def trim_memory_after_compilation() -> None:
    """From now on, call `trim_and_hold_free_blocks` after each long compilation, which can free gigabytes."""
    import jax  # here, so that importing this module does not import jax

    def listener(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and seconds > TRIM_AFTER_SECONDS:
            trim_and_hold_free_blocks()

    jax.monitoring.register_event_duration_secs_listener(listener)


def use_compilation_cache() -> Path | None:
    """Turn on JAX's compilation cache in ~/.cache/jax_ddpm/compiled and return its folder. Call before importing jax.

    Does nothing and returns None if JAX_COMPILATION_CACHE_DIR is set (set it to "" for no cache), or if the folder is
    not writable. JAX does not cache programs with Python callbacks, nor anything that a process compiles after its
    first call of `jax_ddpm.cpu.onednn`.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    folder = (
        cache_dir() / "compiled" / f"{zlib.crc32(cpu_features()):08x}"
    )  # machines that share a home directory may differ
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # Cache programs that take more than 0.1 seconds to compile. JAX's default is 1 second.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    return folder
