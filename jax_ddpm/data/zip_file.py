"""A zip file of pictures, read without being extracted."""

import dataclasses
import hashlib
import io
import zipfile
from functools import partial
from pathlib import Path

from jax_ddpm.data.files import Source
from jax_ddpm.data.formats import HEAD
from jax_ddpm.data.listing import list_images, require_images, source_of
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line, printable

MAX_MEMBER_BYTES = 2**28  # largest uncompressed size of a picture


def open_zip(path: str) -> Source:
    """Find the image files in a zip file, sorted by name. Names serve only for order, splits and classes.

    Raises:
        UserError: no such file, not a zip file, or no image files in it.
    """
    label = printable(path)
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{label}: there is no such file.\nGive the path of a zip file of pictures.")
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(
            f"{label} cannot be read as a zip file ({one_line(error)}).\nReplace it, or give a folder of pictures."
        ) from None
    named = [(_inner_name(info), info) for info in archive.infolist() if not info.is_dir()]
    members = {name: info for name, info in named if not _is_hidden(name)}
    listing = list_images(members, lambda name: _head(archive, members[name]))
    require_images(label, listing)
    digest = hashlib.sha256()
    for name in listing.images:
        digest.update(repr((name, members[name].file_size, members[name].CRC)).encode())
    source = source_of(label, listing, lambda name: partial(_read, archive, members[name]), ["zip", digest.hexdigest()])
    doubled = len(named) - len({name for name, _ in named})
    note = (f"left out: {doubled} files in {label} with the name of another one",) if doubled else ()
    return dataclasses.replace(source, notes=(*source.notes, *note))


def _inner_name(info: zipfile.ZipInfo) -> str:
    """The name of a member with `/` between folders, without `..` and empty parts."""
    return "/".join(part for part in info.filename.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _is_hidden(name: str) -> bool:
    """Whether a folder of the path is hidden, or holds what macOS adds to zip files."""
    folders = name.split("/")[:-1]
    return any(folder.startswith(".") or folder == "__MACOSX" for folder in folders)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> io.BytesIO:
    """The content of a member. Raises ValueError if it is larger than a picture is."""
    if info.file_size > MAX_MEMBER_BYTES:
        raise ValueError(f"{info.file_size / 1e6:,.0f} MB uncompressed; at most {MAX_MEMBER_BYTES / 1e6:,.0f} are read")
    with archive.open(info) as member:
        return io.BytesIO(member.read(MAX_MEMBER_BYTES))


def _head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as member:
            return member.read(HEAD)
    except Exception:  # a damaged or encrypted member
        return b""
