"""Settings of glibc's malloc, so that training steps on CPUs do not wait for memory. Does not import jax."""

import ctypes
import os
import threading
from array import array
from pathlib import Path

OPTIONS = {-8: 1, -4: 0, -1: -1}  # M_ARENA_MAX = 1, M_MMAP_MAX = 0, M_TRIM_THRESHOLD = -1 (never give memory back)
LARGE_BLOCK_BYTES = 1 << 20  # free blocks from this size on stay free: a training step needs them
SMALLEST_BLOCK_BYTES = 64  # smaller free blocks are left alone
MAX_OUTSIDE_BLOCKS = 16  # for each size, stop when malloc has returned this many blocks from outside the old heap
held_blocks = array("Q")  # addresses
hold_lock = threading.Lock()


def keep_freed_memory() -> None:
    """Tell malloc to keep freed memory for the next request, for the rest of the process.

    XLA frees its memory after each step and allocates it again. The system zeroes new pages, which takes up to an
    eighth of a step on a CPU. With these settings, the process keeps its peak memory since the last call of
    `trim_and_hold_free_blocks`. Does nothing with another C library than glibc, or if the environment configures
    malloc.
    """
    if library := c_library():
        for option, value in OPTIONS.items():
            library.mallopt(option, value)


def trim_and_hold_free_blocks() -> None:
    """Return freed memory to the system, and hold small free blocks so that malloc stops scanning them. 0.3 seconds.

    Tracing and compiling a full-size network leave about 100,000 small free blocks between live objects. malloc scans
    them at each of oneDNN's 10,000 allocations per step while other cores wait, for up to a tenth of a step. So this
    function allocates them and holds them until its next call. A held block that is larger than a page uses little
    physical memory. Nothing is held if malloc's heap cannot grow contiguously.
    """
    library = c_library()
    if library and hold_lock.acquire(blocking=False):
        try:
            library.malloc.restype = library.sbrk.restype = ctypes.c_size_t
            library.malloc.argtypes = library.free.argtypes = (ctypes.c_size_t,)
            while held_blocks:
                library.free(held_blocks.pop())
            library.malloc_trim(0)
            hold_free_blocks(library)
        finally:
            hold_lock.release()


def hold_free_blocks(library: ctypes.CDLL) -> None:
    """Allocate and hold the free blocks of SMALLEST_BLOCK_BYTES up to LARGE_BLOCK_BYTES."""
    start, end = heap_start(), library.sbrk(0)
    large_blocks = []  # allocated meanwhile, so that malloc does not split them
    try:
        while (block := library.malloc(LARGE_BLOCK_BYTES)) >= start and block + LARGE_BLOCK_BYTES <= end:
            large_blocks.append(block)
        large_blocks.append(block)  # the first block for which malloc had to grow the heap
        if not end < block + LARGE_BLOCK_BYTES <= library.sbrk(0):
            return
        old_heap_end = block  # all remaining free blocks are below, new memory is above
        size = LARGE_BLOCK_BYTES
        while (size := size * 3 // 4) >= SMALLEST_BLOCK_BYTES:
            outside = []  # blocks outside the old heap: new memory, or memory that Python has freed there
            while len(outside) < MAX_OUTSIDE_BLOCKS and (block := library.malloc(size)):
                (held_blocks if start <= block < old_heap_end else outside).append(block)
            for block in outside:
                library.free(block)
    finally:
        for block in large_blocks:
            library.free(block)


def heap_start() -> int:
    """The start address of the heap ([heap] in /proc/self/maps), or 2^63 if it is not listed."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    return min((int(line.split("-")[0], 16) for line in lines if line.endswith("[heap]")), default=1 << 63)


def c_library() -> ctypes.CDLL | None:
    """glibc, or None for another C library or if environment variables configure malloc."""
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "malloc_trim") else None
