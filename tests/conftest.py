"""What tests of several files use."""

import os
import pickle

import jax
import pytest
from filelock import FileLock

from tests.commands import FLAGS, command


@pytest.fixture(scope="session")
def command_run(tmp_path_factory):
    """Folder of a run of train_jax.py with FLAGS, and what that said; for all workers. Copy it to change it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, said = base / "a run" / "digits, ünïcode", base / "said.pickle"
    with FileLock(base / "run.lock"):
        if not said.exists():
            result = command("train_jax.py", *FLAGS, "--out", folder, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
            assert result.returncode == 0, result.stderr
            said.write_bytes(pickle.dumps(result))
    return folder, pickle.loads(said.read_bytes())


@pytest.fixture(scope="package", autouse=True)
def unoptimised_programs():
    """XLA compiles twice as fast here and in the processes that tests start; parity_tests keep its optimisations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
