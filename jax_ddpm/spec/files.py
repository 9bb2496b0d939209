"""Where files go, and how they are written: whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """The folder for cached images and compiled programs: `$XDG_CACHE_HOME/jax_ddpm`, else `~/.cache/jax_ddpm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "jax_ddpm"


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a draft beside `path`, and moves the draft there once the block has ended without an error.

    Other processes see the old file or the whole new one. The draft is deleted if the block fails. Its name is
    `.<name>.<process>.<random>`.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        draft.touch()
        mode = draft.stat().st_mode  # follows the user's umask; safetensors would make the file private
        yield draft
        draft.chmod(mode)
        with open(draft, "r+b") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as draft:
        draft.write_text(text, encoding="utf-8")
