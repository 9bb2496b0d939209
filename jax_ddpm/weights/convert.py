"""Convert a network's arrays to and from a PyTorch state dict.

A state dict here is a dict of NumPy arrays with PyTorch's names and layouts. Conversion is strict: each array of the
network needs exactly one array of the state dict, and the other way round.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx

from jax_ddpm import unets
from jax_ddpm.layers import Buffer, Conv, ConvTranspose, ConvTranspose2x2, GroupNorm, Linear
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.state_dict import check_arrays
from jax_ddpm.spec.types import StateDict
from jax_ddpm.unets import REGISTERED_TORCH_NAMES
from jax_ddpm.unets.attention import AttentionOutput, QueryKeyValue
from jax_ddpm.unets.layer_norm import LayerNorm
from jax_ddpm.weights.torch_names import TORCH_NAMES

# The parameters of each layer: PyTorch's name, ours, and axes: transpose(ours, axes) is PyTorch's array.
LAYOUTS = {
    Linear: (("weight", "kernel", (1, 0)), ("bias", "bias", (0,))),
    Conv: (("weight", "kernel", (3, 2, 0, 1)), ("bias", "bias", (0,))),  # HWIO to OIHW
    ConvTranspose2x2: (("weight", "kernel", (2, 3, 0, 1)), ("bias", "bias", (0,))),  # HWIO to IOHW, not flipped
    ConvTranspose: (("weight", "kernel", (2, 3, 0, 1)), ("bias", "bias", (0,))),
    GroupNorm: (("weight", "scale", (0,)), ("bias", "bias", (0,))),
    LayerNorm: (("weight", "scale", (2, 0, 1)), ("bias", "bias", (2, 0, 1))),  # HWC to CHW
    QueryKeyValue: (("in_proj_weight", "kernel", (1, 0)), ("in_proj_bias", "bias", (0,))),
    AttentionOutput: (("weight", "kernel", (1, 0)), ("bias", "bias", (0,))),
}


@dataclass(frozen=True)
class TorchArray:
    """One array of a network, and its name and layout in PyTorch."""

    name: str
    """PyTorch's name."""
    layer: nnx.Module | None
    """The layer that the array belongs to, if it is one of LAYOUTS."""
    variable: nnx.Variable
    """Our array."""
    axes: tuple[int, ...]
    """transpose(variable, axes) is PyTorch's array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch."""
        return tuple(self.variable.shape[axis] for axis in self.axes)

    def to_torch(self, value) -> np.ndarray:
        return np.asarray(np.transpose(np.asarray(value), self.axes), order="C")

    def from_torch(self, value) -> np.ndarray:
        return np.asarray(np.transpose(np.asarray(value), np.argsort(self.axes)), order="C")


def torch_arrays(network: nnx.Module) -> list[TorchArray]:
    """Every array of a network with its PyTorch name.

    The names are those of the network's table in `torch_names`, or of the table given to `register`. Without a table
    they are the paths of the network's attributes. Raises UserError for arrays that the table does not name, and
    without a table for arrays that are neither parameters nor buffers.
    """
    class_name = type(network).__name__
    table = {**TORCH_NAMES, **REGISTERED_TORCH_NAMES}.get(class_name)
    matched, unmatched = [], {}
    for keys, node in nnx.iter_graph(network):
        path = ".".join(map(str, keys))
        if isinstance(node, nnx.Variable):
            unmatched[id(node)] = (path, node)
        name = torch_name(table, path) if table else path if type(node) in LAYOUTS else None
        if name is None or node is None:
            continue
        if isinstance(node, nnx.Variable):
            matched.append(same_layout(name, node))
        else:
            matched += [
                TorchArray(f"{name}.{torch_parameter}", node, getattr(node, parameter), axes)
                for torch_parameter, parameter, axes in LAYOUTS[type(node)]
            ]
    for array in matched:
        unmatched.pop(id(array.variable), None)
    wrong = [path for path, node in unmatched.values() if table or not isinstance(node, nnx.Param | Buffer)]
    if wrong:
        problem = "arrays that are neither parameters nor buffers" if table is None else "arrays without a PyTorch name"
        raise UserError(f"{class_name} has {problem}: {', '.join(wrong)}.")
    return matched + [same_layout(path, node) for path, node in unmatched.values()]


@functools.lru_cache(maxsize=64)
def array_shapes(config: NetworkConfig, image_channels: int) -> dict[str, tuple[int, ...]]:
    """The shape in PyTorch of every array of a network, by PyTorch name."""
    return {array.name: array.shape for array in torch_arrays(unets.build(config, image_channels))}


def same_layout(name: str, variable: nnx.Variable) -> TorchArray:
    """An array that has the same layout in PyTorch."""
    return TorchArray(name, None, variable, tuple(range(len(variable.shape))))


def torch_name(table: Mapping[str, str], path: str) -> str | None:
    """The PyTorch name for a path in our network, or None if the table does not have it."""
    for torch_pattern, pattern in table.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), path)
        if match:
            return torch_pattern.format(*match.groups())
    return None


def state_dict(network: nnx.Module) -> StateDict:
    """The PyTorch state dict of a network."""
    return {array.name: array.to_torch(array.variable[...]) for array in torch_arrays(network)}


def check_state_dict(network: nnx.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """Raise UserError for missing, unexpected and wrongly shaped arrays, and those not finite in `dtype`.

    The network's arrays may be abstract: only their shapes are used.
    """
    shapes = {array.name: array.shape for array in torch_arrays(network)}
    check_arrays(type(network).__name__, shapes, values, dtype)


def load_state_dict(network: nnx.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """Fill a network with a PyTorch state dict, cast to `dtype`, in place. Raises UserError if it does not fit."""
    check_state_dict(network, values, dtype)
    for array in torch_arrays(network):
        array.variable.set_value(array.from_torch(np.asarray(values[array.name]).astype(dtype)))


def to_device(network: nnx.Module) -> None:
    """Put a network's arrays on the default device, in place. NumPy arrays would be transferred at every call."""
    nnx.update(network, jax.device_put(nnx.state(network)))
