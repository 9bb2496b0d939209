"""Weights: load models, convert to and from PyTorch state dicts, draw initial values."""

from jax_ddpm.weights.convert import (
    array_shapes,
    check_state_dict,
    load_state_dict,
    state_dict,
    to_device,
    torch_arrays,
)
from jax_ddpm.weights.initial_values import initialise
from jax_ddpm.weights.model import Model, load_model
from jax_ddpm.weights.run_checkpoint import read_checkpoint

__all__ = [
    "Model",
    "array_shapes",
    "check_state_dict",
    "initialise",
    "load_model",
    "load_state_dict",
    "read_checkpoint",
    "state_dict",
    "to_device",
    "torch_arrays",
]
