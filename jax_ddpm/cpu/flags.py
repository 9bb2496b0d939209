"""Flags of the XLA compiler that make JAX faster on CPUs. Does not import jax."""

import importlib.util
import mmap
import os
from pathlib import Path

# Compute single matrix products with XLA's YNN library. Convolutions then also run up to twice as fast.
MATMUL_FLAG, MATMUL_VALUE = "xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
# Use vectors of 512 bits instead of 256 on CPUs with avx512_bf16. Many older CPUs lower their clock for 512 bits.
VECTOR_WIDTH_FLAG, VECTOR_WIDTH, WIDE_VECTOR_FEATURE = "xla_cpu_prefer_vector_width", "512", b"avx512_bf16"


def set_cpu_flags() -> None:
    """Add flags to XLA_FLAGS that make XLA faster on CPUs. Call it before JAX first compiles something.

    Results change only by rounding. Flags that XLA_FLAGS already has stay as they are. Flags that this jaxlib does not
    know are not added, because XLA aborts the process on an unknown flag.
    """
    add_flag(MATMUL_FLAG, MATMUL_VALUE)
    if WIDE_VECTOR_FEATURE in cpu_features():
        add_flag(VECTOR_WIDTH_FLAG, VECTOR_WIDTH)


def add_flag(flag: str, value: str) -> None:
    """Add the flag to XLA_FLAGS, unless it is there already or jaxlib does not know the flag or the value."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags and jaxlib_has(flag, value):
        os.environ["XLA_FLAGS"] = f"{flags} --{flag}={value}".strip()


def jaxlib_has(*names: str) -> bool:
    """Whether all these names occur in jaxlib's compiled library. Takes at most 0.1 seconds."""
    spec = importlib.util.find_spec("jaxlib")
    library = Path(spec.origin).parent / "libjax_common.so" if spec and spec.origin else None
    try:
        with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(name.encode()) >= 0 for name in names)
    except (OSError, TypeError, ValueError):
        return False


def cpu_features() -> bytes:
    """The line of /proc/cpuinfo that lists the CPU's instruction sets, or b"" if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
