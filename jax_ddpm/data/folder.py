"""A folder of image files, at any depth, with or without a folder per class."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from jax_ddpm.data.files import ImageFiles, Source
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def open_folder(path: str) -> Source:
    """Find the image files in a folder and its subfolders, sorted by path. Hidden files and folders are skipped.

    Raises:
        UserError: no such folder, not a folder, or no image files in it.
    """
    root = Path(path).expanduser()
    label = f"folder:{printable(path)}"
    if not path:
        raise UserError("folder: needs a path, for example --dataset folder:pictures.")
    if not root.exists():
        raise UserError(f"{label}: there is no such folder.\nGive the path of a folder that holds images.")
    if not root.is_dir():
        raise UserError(f"{label}: this is a file, not a folder.\nGive the folder that holds the images.")
    names = sorted(_names(root))
    if not names:
        raise UserError(
            f"{label}: no images in it or in its subfolders.\nExpected files that end in {', '.join(SUFFIXES)}."
        )
    listing = hashlib.sha256()
    for name in names:
        listing.update(repr((name, *_size_and_time(root / name))).encode())
    files = ImageFiles(label, len(names), None, lambda: ((name, root / name) for name in names))
    return Source(files, None, ["folder", listing.hexdigest()])


def _names(root: Path) -> Iterator[str]:
    """Paths of the image files relative to `root`."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        identity = os.path.realpath(folder)
        if identity in seen:  # a symbolic link to a folder that was already visited
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)
