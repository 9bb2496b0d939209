"""Snapshots of a run's power-function averages, `RUN/power_ema/STEP-WIDTH.safetensors`, and other widths from them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.power_ema import (
    MAX_PROFILE_ERROR,
    check_width,
    coefficients,
    gamma_of,
    profile_error,
    reachable_widths,
)
from jax_ddpm.spec.read_content import open_model, read_arrays
from jax_ddpm.spec.run_checkpoints import is_run
from jax_ddpm.spec.text import some
from jax_ddpm.spec.types import StateDict

SNAPSHOTS = "power_ema"
NAME = re.compile(r"(\d+)-(0\.\d+)\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """A file with an average of the weights, which `load_model` takes, too."""

    path: Path
    step: int
    width: float


@dataclass(frozen=True)
class Average:
    """How an average of some width is made of a run's snapshots."""

    width: float
    step: int
    snapshots: tuple[Snapshot, ...]
    """Those up to the step."""
    coefficients: np.ndarray
    """float64, one for each snapshot; their sum is 1."""
    error: float
    """`power_ema.profile_error`."""


def snapshot_path(run: Path, step: int, width: float) -> Path:
    """Where the average of this width at this step is stored."""
    return run / SNAPSHOTS / f"{step}-{np.format_float_positional(width)}.safetensors"


def find_snapshots(run: Path) -> list[Snapshot]:
    """The snapshots of a run, by step and width."""
    folder = run / SNAPSHOTS
    names = [(path, NAME.fullmatch(path.name)) for path in (folder.iterdir() if folder.is_dir() else ())]
    found = [Snapshot(path, int(match[1]), float(match[2])) for path, match in names if match]
    return sorted(found, key=lambda snapshot: (snapshot.step, snapshot.width))


def remove_snapshots_after(run: Path, step: int) -> None:
    """Delete the snapshots of later steps, which a run that goes on at `step` writes again."""
    for snapshot in find_snapshots(run):
        if snapshot.step > step:
            snapshot.path.unlink()


def find_average(path: str | os.PathLike, width: float, step: int | None = None, weights: str | None = None) -> Average:
    """How the average of a width is made.

    Args:
        path: the folder of a run.
        width: the width, relative to the length of the training until `step`.
        step: the step of a snapshot. Default: that of the newest.
        weights: the weights that were asked for by kind; must be None.

    Raises:
        UserError: no run, too few snapshots, no snapshot at `step`, or a width that they do not reach.
    """
    run = Path(path)
    check_width("ema_width", width)
    if weights is not None:
        raise UserError(
            f"--weights {weights} (in Python: weights={weights!r}) and --ema-width {width} (in Python: "
            f"ema_width={width}) do not go together: give one of them."
        )
    if not is_run(run):
        raise UserError(
            f"ema_width = {width}: {run} is not the folder of a run. Give a run that was trained with --power-ema "
            "(in Python: power_ema=True).\n--step chooses one of its steps."
        )
    snapshots = find_snapshots(run)
    steps = sorted({snapshot.step for snapshot in snapshots})
    if len(steps) < 2:
        held = f"has snapshots of only one step, {steps[0]}" if steps else f"has no snapshots in {SNAPSHOTS}/"
        raise UserError(
            f"ema_width = {width}: {run} {held}. Expected at least two.\n"
            "A run writes them if it is trained with --power-ema (in Python: power_ema=True)."
        )
    wanted = steps[-1] if step is None else step
    expected = f"expected one of the {len(steps)} steps with snapshots: {some([str(each) for each in steps], 8)}"
    require(wanted in steps, "step", wanted, expected)
    used = tuple(snapshot for snapshot in snapshots if snapshot.step <= wanted)
    at, gammas = np.array([each.step for each in used]), np.array([gamma_of(each.width) for each in used])
    error = profile_error(at, gammas, wanted, gamma_of(width))
    if error > MAX_PROFILE_ERROR:
        limits = reachable_widths(at, gammas, wanted)
        reach = "none" if limits is None else f"{limits[0]:.2g} to {limits[1]:.2g}"
        raise UserError(
            f"ema_width = {width}: the snapshots of {run} up to step {wanted} do not reach it (the profile would be "
            f"{error:.0%} off). Expected a width that they reach: {reach}.\n"
            "More frequent snapshots (--power-ema-every) reach smaller and larger widths."
        )
    return Average(width, wanted, used, coefficients(at, gammas, wanted, gamma_of(width)), error)


def read_average(average: Average) -> tuple[StateDict, str | None]:
    """The arrays of the average, float32, by PyTorch name, and the metadata of its newest snapshot.

    The sum is computed in float64, one snapshot at a time. Raises UserError for files that do not fit together.
    """
    total: dict[str, np.ndarray] = {}
    for snapshot, coefficient in zip(average.snapshots, average.coefficients, strict=True):
        file = open_model(snapshot.path)
        arrays = read_arrays(file.own_arrays, snapshot.path)
        shapes = {name: array.shape for name, array in arrays.items()}
        if total and shapes != {name: array.shape for name, array in total.items()}:
            raise UserError(f"{snapshot.path} has other arrays than the earlier snapshots of the run: delete it.")
        for name, array in arrays.items():
            part = coefficient * array.astype(np.float64)
            total[name] = total[name] + part if name in total else part
    return {name: array.astype(np.float32) for name, array in total.items()}, file.metadata


def describe_average(average: Average) -> str:
    """One line: of what the average is made, and how near its profile is."""
    steps = len({snapshot.step for snapshot in average.snapshots})
    folder = average.snapshots[-1].path.parent
    return (
        f"Took the average of width {average.width:g} at step {average.step:,}, combined from the snapshots of {steps} "
        f"steps in {folder}. Its profile is {average.error:.2g} off (relative norm)."
    )
