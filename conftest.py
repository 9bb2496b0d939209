"""For every test: annotations of shapes and dtypes are checked, and what is compiled once is not compiled again."""

import atexit
import os
import shutil
import tempfile

import pytest
import torch
from jaxtyping import install_import_hook

if "JAX_PLATFORMS" not in os.environ:  # budgets were measured on CPUs; JAX_PLATFORMS=cuda,cpu tries a GPU
    os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # tests start processes that share a GPU

ANNOTATED = ("arrays", "diffusion", "embeddings", "sampling", "unets", "training.state", "training.step")
install_import_hook([f"jax_ddpm.{name}" for name in ANNOTATED], "beartype.beartype")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder, and so do the commands that tests start
    cache = tempfile.mkdtemp(prefix="jax_ddpm_tests_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

torch.set_num_threads(1)  # its threads and JAX's, side by side on two cores, make it ten times slower


@pytest.fixture(autouse=True)
def compiled_programs_are_kept():
    """Again, where an earlier test called `onednn`, which turns that off for the rest of a process."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
