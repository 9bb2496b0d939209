"""The file with their weights as ours has them: written after a comparison, and loaded into a module of Flax."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import linen, nnx, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax_ddpm.doctor.flax_side import named_variables
from jax_ddpm.doctor.result import Result
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.network_config import NETWORKS
from jax_ddpm.spec.read_content import open_model, read_arrays
from jax_ddpm.spec.state_dict import check_arrays
from jax_ddpm.spec.text import one_line, some
from jax_ddpm.unets import NETWORK_CLASSES
from jax_ddpm.weights import state_dict

METADATA = {"written_by": "jax_ddpm.doctor"}


def check_transfer_file(path: Path) -> None:
    """Raise UserError unless `save_transferred` may write there. It replaces only files that it wrote."""
    if path.suffix != ".safetensors":
        raise UserError(f"--transfer-to {path}: expected a file name that ends in .safetensors.")
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"--transfer-to {path} cannot be written: expected a file name in a folder that exists.")
    if path.exists() and not is_ours(path):
        raise UserError(f"--transfer-to {path} exists, and was not written by the doctor. Choose another name.")


def is_ours(path: Path) -> bool:
    """Whether a file was written by `save_transferred`."""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).items() >= METADATA.items()
    except (OSError, SafetensorError):
        return False


def save_transferred(result: Result, flax_module, path: str | os.PathLike) -> str:
    """Write ours with the weights of theirs to a file of safetensors, and return a sentence that says how to load it.

    Arrays are named by their paths in ours, such as "down.conv.kernel"; in Linen the collection comes first, as in
    "params.Conv_0.kernel". A network that is registered in jax_ddpm is written with PyTorch's names, for `load_model`.

    Args:
        result: of a comparison with the weights of theirs (`transfer_weights=True`).
        flax_module: the module that was compared.

    Raises:
        UserError: the result has no such weights, an array of ours has no partner in theirs, or the file cannot be
            written.
    """
    if result.weights is None:
        raise UserError("The comparison has no weights of theirs in ours: compare with transfer_weights=True.")
    if result.parameters.unpaired_ours:
        raise UserError(
            f"{path} is not written: arrays of ours have no partner in theirs: {some(result.parameters.unpaired_ours)}."
        )
    arrays, loading = dict(result.weights), "jax_ddpm.doctor.load_transferred(module, path) fills a module with it"
    name = next((name for name, kind in NETWORK_CLASSES.items() if kind is type(flax_module)), None)
    if name is not None:
        filled = nnx.clone(flax_module)
        fill(filled, arrays)
        arrays = state_dict(filled)
        loading = f"jax_ddpm.load_model(path, network={NETWORKS[name].__name__}(...)) loads it"
    try:
        with atomic_path(path) as temporary:
            save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, temporary, metadata=METADATA)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({getattr(error, 'strerror', None) or one_line(error)}).") from None
    return f"{path} holds the weights of theirs as ours has them: {loading}."


def load_transferred(flax_module, path: str | os.PathLike):
    """Load a file that `save_transferred` or `jax-ddpm doctor --transfer-to` wrote.

    Args:
        flax_module: an nnx.Module, which is filled in place; or a linen.Module.

    Returns:
        The nnx.Module; for Linen the variables, as `module.apply` takes them.

    Raises:
        UserError: the file cannot be read, or its arrays are not those of the module.
    """
    path = Path(path)
    arrays = read_arrays(open_model(path).content.dictionaries[0].arrays, path)
    if isinstance(flax_module, linen.Module):
        return traverse_util.unflatten_dict({name: jnp.asarray(value) for name, value in arrays.items()}, sep=".")
    shapes = {name: tuple(variable.shape) for name, variable in named_variables(flax_module).items()}
    check_arrays(type(flax_module).__name__, shapes, arrays, np.float32)
    fill(flax_module, arrays)
    return flax_module


def fill(module: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Set all variables of a module by path, in their own dtypes."""
    for name, variable in named_variables(module).items():
        variable.set_value(jnp.asarray(arrays[name], variable.dtype))
