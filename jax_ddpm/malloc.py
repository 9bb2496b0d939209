"""How glibc's malloc keeps memory, for which steps on CPUs need not wait. Does not import jax."""

import ctypes
import os
from array import array

OPTIONS = {-8: 1, -4: 0, -1: -1}  # M_ARENA_MAX; M_MMAP_MAX: none; M_TRIM_THRESHOLD: never
LARGEST, SMALL, LEAST = 1 << 30, 1 << 20, 64  # bytes: pieces below SMALL, down to LEAST, are held
held = array("Q")  # addresses


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
    """Give the system what `keep_freed_memory` has kept until now, and the small pieces to nobody; takes 0.3 seconds.

    Tracing and compiling leave a hundred thousand free pieces between what lives on. malloc would look through them at
    each of oneDNN's requests, ten thousand a step, while other cores wait: up to a tenth of a step. So they are taken,
    until this is called again; most of their bytes are not resident.
    """
    library = c_library()
    if not library:
        return
    library.malloc.restype = library.sbrk.restype = ctypes.c_size_t
    library.malloc.argtypes = library.free.argtypes = (ctypes.c_size_t,)
    while held:
        library.free(held.pop())
    library.malloc_trim(0)
    end, large = library.sbrk(0), []
    while 0 < (roof := library.malloc(LARGEST)) < end:
        large.append(roof)
    if end <= roof < library.sbrk(0):  # all that was free lies below, all that will be new above
        take_pieces(library, roof, large)
    for piece in [*large, roof]:
        library.free(piece)


def take_pieces(library: ctypes.CDLL, roof: int, large: list[int]) -> None:
    """All free pieces below the roof: those to be given back are added to `large`, the others to `held`."""

    def of_size(size: int, misses: int = 1):
        beyond = []
        while len(beyond) < misses and (piece := library.malloc(size)):
            if piece < roof:
                yield piece
            else:  # a few may be what Python has just freed
                beyond.append(piece)
        for piece in beyond:
            library.free(piece)

    size = LARGEST
    while (size := size // 2) >= SMALL:  # else smaller requests would be cut from them
        large.extend(of_size(size))
    while (size := size * 3 // 4) >= LEAST:
        held.extend(of_size(size, misses=16))


def c_library() -> ctypes.CDLL | None:
    """glibc, where it is at hand and its malloc was not spoken for."""
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return None
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None
