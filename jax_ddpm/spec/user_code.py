"""Runs code that the user names on a command line."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line


def run_file(path: Path, name: str) -> ModuleType:
    """The module of a .py file, executed and listed in sys.modules under `name`. If it fails, it is not listed."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_object(text: str) -> Any:
    """What FILE.py:NAME or package.module:NAME names. The user's code is run."""
    source, colon, name = text.rpartition(":")
    if not (colon and source and name):
        raise UserError(f"{text}: expected FILE.py:NAME or package.module:NAME, such as unet.py:UNet.")
    value = load_module(source, text)
    for part in name.split("."):
        if not hasattr(value, part):
            public = [key for key in vars(value) if not key.startswith("_") and callable(getattr(value, key))]
            raise UserError(f"{text}: {source} has no {name}. It has: {', '.join(public[:12]) or 'nothing callable'}.")
        value = getattr(value, part)
    return value


def find_file(source: str, missing: str) -> Path | None:
    """The path of a .py file; None for the name of a module. Modules beside the file can be imported afterwards.

    Those of the working directory can, if it is a name. missing: the message if there is no such file.
    """
    is_file = source.endswith(".py") or os.sep in source
    path = Path(source).resolve()
    if is_file and not path.is_file():
        raise UserError(missing)
    folder = str(path.parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return path if is_file else None


def load_module(source: str, text: str) -> ModuleType:
    path = find_file(source, f"{text}: there is no file {source}.")
    try:
        if path is None:
            return importlib.import_module(source)
        known = sys.modules.get(path.stem)
        if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path:
            return known
        return run_file(path, path.stem if known is None else f"{path.stem}_{abs(hash(path))}")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{text} cannot be imported: {type(error).__name__}: {one_line(error)}.") from error
