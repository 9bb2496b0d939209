"""`--import`: run files or modules that register the user's own networks, schedules, objectives and samplers.

That happens before a command reads its other flags.
"""

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import BUILT_IN, NETWORKS
from jax_ddpm.spec.own_networks import IMPORTED
from jax_ddpm.spec.registered import OBJECTIVES, SAMPLERS, SCHEDULES
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.user_code import find_file, run_file


def import_given(arguments: Sequence[str]) -> None:
    """Import what the flags --import of a command line name. Only they do that, never a run or a model file.

    Raises UserError for what cannot be imported, and if nothing is registered then.
    """
    names = values_of("import", arguments)
    for name in names:
        import_module(name)
        if name not in IMPORTED:
            IMPORTED.append(name)
    if names and not (set(NETWORKS) - BUILT_IN or SCHEDULES or OBJECTIVES or SAMPLERS):
        raise UserError(
            f"--import {' '.join(names)}: nothing is registered there. Expected a call of jax_ddpm.register or "
            "torch_ref.register, or of register_schedule, register_objective or register_sampler."
        )


def import_module(name: str) -> ModuleType:
    """The module of a .py file, or the one with this name, which is searched in the working directory, too.

    A file's neighbours can be imported by it. UserError names the line of the user's code that failed.
    """
    missing = f"--import {name}: there is no such file. Expected a .py file, or the name of a module."
    path = find_file(name, missing)
    try:
        return importlib.import_module(name) if path is None else from_file(path)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0] and path is None:
            raise UserError(
                f"--import {name}: there is no module of this name. Expected a .py file, or the name of a module."
            ) from None
        folder = str(Path.cwd() if path is None else path.parent)
        raise UserError(
            f"--import {name} failed{place_of(error, folder)}: {type(error).__name__}: {one_line(error)}."
        ) from error


def from_file(path: Path) -> ModuleType:
    """The module of a .py file, under the name of the file; executed once in a process."""
    known = sys.modules.get(path.stem)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").resolve() == path:
            return known
        raise UserError(f"--import {path}: a module '{path.stem}' is loaded already. Give the file another name.")
    return run_file(path, path.stem)


def place_of(error: Exception, folder: str) -> str:
    """ " in FILE, line N" for the last line of the user's code that an error came from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    return f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """All values given to --flag, as `--flag value` or `--flag=value`."""
    values = []
    for place, argument in enumerate(arguments):
        if argument == f"--{flag}" and place + 1 < len(arguments):
            values.append(arguments[place + 1])
        elif argument.startswith(f"--{flag}="):
            values.append(argument.partition("=")[2])
    return values
