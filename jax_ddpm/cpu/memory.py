"""How glibc's malloc keeps memory, for which steps on CPUs need not wait. Does not import jax."""

import ctypes
import os
import threading
from array import array
from pathlib import Path

OPTIONS = {-8: 1, -4: 0, -1: -1}  # M_ARENA_MAX; M_MMAP_MAX: none; M_TRIM_THRESHOLD: never
LARGE, LEAST = 1 << 20, 64  # bytes; what is free is held in pieces below LARGE and down to LEAST
MISSES = 16  # pieces of a size that lie elsewhere, after which there are no more of those looked for
held = array("Q")  # addresses
one_at_a_time = threading.Lock()


def keep_freed_memory() -> None:
    """Tell malloc, for the rest of the process, to keep what is freed for the next request.

    XLA frees its memory after each step and asks for it anew; the system's zeroing it each time takes up to an eighth
    of a step on a CPU. A process then holds the most that it ever held since `settle_memory`. Changes nothing with
    another C library, or where the environment says how malloc is to work.
    """
    if library := c_library():
        for option, value in OPTIONS.items():
            library.mallopt(option, value)


def settle_memory() -> None:
    """Give the system what `keep_freed_memory` has kept until now, and the small free pieces to nobody; 0.3 seconds.

    Tracing and compiling a full-size network leave a hundred thousand of them between what lives on. malloc would look
    through them at each of oneDNN's requests, ten thousand a step, while other cores wait: up to a tenth of a step. So
    they are taken, until this is called again; of those larger than a page little is resident. They are left where
    malloc's memory cannot grow in one piece.
    """
    library = c_library()
    if library and one_at_a_time.acquire(blocking=False):
        try:
            library.malloc.restype = library.sbrk.restype = ctypes.c_size_t
            library.malloc.argtypes = library.free.argtypes = (ctypes.c_size_t,)
            while held:
                library.free(held.pop())
            library.malloc_trim(0)
            hold_free_pieces(library)
        finally:
            one_at_a_time.release()


def hold_free_pieces(library: ctypes.CDLL) -> None:
    """Hold what is free, but for all that makes up whole pieces of `LARGE` bytes: a step needs those."""
    start, end = heap_start(), library.sbrk(0)
    large = []
    try:
        while (roof := library.malloc(LARGE)) >= start and roof + LARGE <= end:  # not to be cut up
            large.append(roof)
        large.append(roof)
        if not end < roof + LARGE <= library.sbrk(0):
            return
        size = LARGE  # now all that was free is below the roof, and what will be new above
        while (size := size * 3 // 4) >= LEAST:
            beyond = []  # Python, too, has freed a few pieces there
            while len(beyond) < MISSES and (piece := library.malloc(size)):
                (held if start <= piece < roof else beyond).append(piece)
            for piece in beyond:
                library.free(piece)
    finally:
        for piece in large:
            library.free(piece)


def heap_start() -> int:
    """The address at which the memory begins that Linux lets grow for malloc, or one that no memory has."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    return min((int(line.split("-")[0], 16) for line in lines if line.endswith("[heap]")), default=1 << 63)


def c_library() -> ctypes.CDLL | None:
    """glibc, where it is at hand and its malloc was not spoken for."""
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "malloc_trim") else None
