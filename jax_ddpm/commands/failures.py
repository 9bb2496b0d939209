"""Sentences for failures of the machine or of the installation, which are not mistakes in the program."""

import errno
import os
import traceback

from jax_ddpm.spec.text import one_line

OURS = ("jax_ddpm", "torch_ref")
DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free disk space, then run the command again."),
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), then run the command again.",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Choose another place, or change its permissions."),
}
LOWER = {
    "train": "Give --accumulate 4 or --remat, also with --resume. A new run can have a lower --batch-size instead.",
    "train-torch": "Lower --batch-size.",
    "sample": "Lower --batch-size, or give --precision bfloat16.",
    "evaluate": "Lower --batch-size or --num-images, or give --precision bfloat16.",
    "benchmark": "Lower --batch-size, or give --preset tiny.",
}


def explain(error: BaseException, command: str) -> str | None:
    """One or two lines about a failure of memory, disk, packages or devices; None for other exceptions.

    command: the name of the command that failed, for what to lower.
    """
    if is_out_of_memory(error):
        rest = LOWER.get(command, "Close other programs, or use a machine with more memory.")
        return f"There is not enough memory ({one_line(error)}).\n{rest}"
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.filename or 'A file'}: {os.strerror(error.errno)}.\n{DISK[error.errno]}"
    if package := broken_package(error):
        return (
            f"The Python package {package} cannot be imported ({type(error).__name__}: {one_line(error)}).\n"
            "Install jax-ddpm and its packages again, best in a new virtual environment."
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the host or of the device was too small, as Python, JAX and PyTorch say it."""
    text = str(error).lower()
    raised_by = type(error).__module__.partition(".")[0]
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (raised_by in ("jax", "jaxlib", "torch") or type(error) is RuntimeError)
        and any(words in text for words in ("resource_exhausted", "out of memory", "can't allocate memory"))
    )


def broken_package(error: BaseException) -> str | None:
    """The package, not one of ours, that is missing or that fails while it is imported; None for other errors."""
    name = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if name:
        return None if name in OURS else name
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [(frame.f_globals.get("__name__") or "").partition(".")[0] for frame in frames]
    called = 1 + max((i for i, name in enumerate(names) if name in OURS), default=len(names))
    if called >= len(frames) or frames[called].f_code.co_name != "<module>":  # code of a module runs at its import
        return None
    return next(
        name for frame, name in reversed(list(zip(frames, names, strict=True))) if frame.f_code.co_name == "<module>"
    )
