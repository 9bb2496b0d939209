"""Runs `prepare.py` in a process of its own and turns its failures into errors for the user."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from jax_ddpm.spec.errors import UserError

# Seconds to wait after Ctrl-C while the child, which receives it too, deletes incomplete files.
TIDY_UP = 10
PACKAGE_ROOT = str(Path(__file__).parents[2])
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",  # preparing needs no accelerator, and this process may be using it
    "JAX_PLATFORMS": "cpu",
}


def prepare_in_child(name: str, data_dir: str | None, manual_dir: str | None) -> UserError | None:
    """Download and prepare a data set of tensorflow_datasets; its progress bars go to stderr.

    Args:
        name: the data set's name in tensorflow_datasets.
        data_dir: the folder to write to; None for the default of tensorflow_datasets.
        manual_dir: a folder of archives that the user has downloaded by hand.

    Returns:
        None after a success, else the error to raise.
    """
    if importlib.util.find_spec("tensorflow") is None:  # tensorflow_datasets would notice after the download
        return UserError(
            f"{name} has to be prepared first, which needs TensorFlow. Install it or give --data-dir (prepared data):\n"
            "pip install -c constraints.txt -e \".[data]\" (or pip install 'jax-ddpm[data]')"
        )
    path = os.pathsep.join(filter(None, (PACKAGE_ROOT, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "jax_ddpm.data.prepare", name, data_dir or "", manual_dir or ""]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="utf-8") as child:
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
