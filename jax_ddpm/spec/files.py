"""Where files are cached, and how they are written: completely or not at all."""

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
    """Yield the path of a temporary file in the same folder. If the block ends without an error, rename it to `path`.

    Other processes see the old file or the complete new one. If the block fails, the temporary file is deleted. Its
    name is `.<name>.<process id>.<random>`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # respects the user's umask; safetensors would make the file private
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "r+b") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
