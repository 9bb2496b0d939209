"""Runs `prepare` in a process of its own, and turns what went wrong there into an error for the user."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from jax_ddpm.spec.errors import UserError

TIDY_UP = 10  # seconds for the child, which Ctrl-C reaches too, to delete what is incomplete
PACKAGE_ROOT = str(Path(__file__).parents[2])
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",  # preparing needs no accelerator, and this process may hold it
    "JAX_PLATFORMS": "cpu",
}


def prepare_in_child(name: str, data_dir: str | None, manual_dir: str | None) -> UserError | None:
    """Download and prepare a data set of tensorflow_datasets as array_record; its progress bars go to stderr.

    Args:
        name: as tensorflow_datasets takes it.
        data_dir: where it goes; None for the default of tensorflow_datasets.
        manual_dir: archives fetched by hand to prepare from.

    Returns:
        None after a success, else what to tell the user.
    """
    path = os.pathsep.join(filter(None, (PACKAGE_ROOT, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "jax_ddpm.data.prepare", name, data_dir or "", manual_dir or ""]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        try:
            report = child.communicate()[0].strip()
        except BaseException:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(TIDY_UP)
            child.kill()
            raise
    if child.returncode or not report:
        how = f"was killed by signal {-child.returncode}" if child.returncode < 0 else f"ended with {child.returncode}"
        outcome = {"kind": "other", "cause": f"the process that prepares it {how}"}
    else:
        outcome = json.loads(report)
    return _error(name, **outcome) if outcome else None


def _error(name: str, kind: str, cause: str) -> UserError:
    if kind == "network":
        return UserError(
            f"{name}: the download failed ({cause}).\n"
            "Check the network, or give --manual-dir (archives fetched by hand) or --data-dir (data already prepared)."
        )
    if kind == "package":
        return UserError(f"{name} could not be prepared: {cause}.\nInstall that Python package and run again.")
    return UserError(
        f"{name} could not be prepared: {cause}.\n"
        "Give --manual-dir (archives fetched by hand) or --data-dir (data already prepared), or another --dataset."
    )
