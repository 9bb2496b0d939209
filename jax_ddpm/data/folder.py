"""A folder of image files, at any depth, with or without a folder per class or per split."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from jax_ddpm.data.files import Source
from jax_ddpm.data.formats import HEAD
from jax_ddpm.data.listing import Listing, list_images, require_images, source_of
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import printable


def open_folder(path: str) -> Source:
    """Find the image files in a folder and its subfolders, sorted by path. Hidden files and folders are skipped.

    Raises:
        UserError: no such folder, not a folder, or no image files in it.
    """
    root, listing = list_folder(path)
    digest = hashlib.sha256()
    for name in listing.images:
        digest.update(repr((name, *_size_and_time(root / name))).encode())
    return source_of(f"folder:{printable(path)}", listing, lambda name: root / name, ["folder", digest.hexdigest()])


def list_folder(path: str) -> tuple[Path, Listing]:
    """The folder, and the image files in it and its subfolders. Raises UserError as `open_folder`."""
    root = Path(path).expanduser()
    label = f"folder:{printable(path)}"
    if not path:
        raise UserError("folder: needs a path, for example --dataset folder:pictures.")
    if not root.exists():
        raise UserError(f"{label}: there is no such folder.\nGive the path of a folder that holds images.")
    if not root.is_dir():
        raise UserError(f"{label}: this is a file, not a folder.\nGive the folder that holds the images.")
    listing = list_images(_names(root), lambda name: _head(root / name))
    require_images(label, listing)
    return root, listing


def _names(root: Path) -> Iterator[str]:
    """Paths of the files relative to `root`."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        identity = os.path.realpath(folder)
        if identity in seen:  # a symbolic link to a folder that was already visited
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = Path(folder).relative_to(root).as_posix()
        yield from names if inside == "." else (f"{inside}/{name}" for name in names)


def _head(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read or is no ordinary file."""
    try:
        if path.is_file():
            with open(path, "rb") as file:
                return file.read(HEAD)
    except OSError:
        pass
    return b""


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)
