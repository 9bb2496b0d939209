"""Parameters under their PyTorch names, both ways, strictly; how they start; files that hold them.

A state dict here is a dict of NumPy arrays in PyTorch's names and layouts. A network and a state dict fit only if
every array of the one goes to exactly one of the other.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx

from jax_ddpm.layers import Buffer, Conv, ConvTranspose, ConvTranspose2x2, GroupNorm, Linear
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.state_dict import check_arrays
from jax_ddpm.spec.types import StateDict
from jax_ddpm.unets import REGISTERED_TORCH_NAMES
from jax_ddpm.unets.attention import AttentionOutput, QueryKeyValue
from jax_ddpm.unets.layer_norm import LayerNorm
from jax_ddpm.weights.torch_names import TORCH_NAMES

# Of each layer: PyTorch's parameter, ours, and the axes of ours in PyTorch's order.
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
    """One array of a network: its PyTorch name, the variable, and the variable's axes in PyTorch's order."""

    name: str
    layer: nnx.Module | None
    variable: nnx.Variable
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch."""
        return tuple(self.variable.shape[axis] for axis in self.axes)

    def to_torch(self, value) -> np.ndarray:
        return np.asarray(np.transpose(np.asarray(value), self.axes), order="C")

    def from_torch(self, value) -> np.ndarray:
        return np.asarray(np.transpose(np.asarray(value), np.argsort(self.axes)), order="C")


def torch_arrays(network: nnx.Module) -> list[TorchArray]:
    """Every array of a network with its PyTorch name: by the table in `torch_names.py`, else by its own attributes.

    Raises UserError for arrays that the table does not name, or that are neither parameters nor buffers.
    """
    kind = type(network).__name__
    table = {**TORCH_NAMES, **REGISTERED_TORCH_NAMES}.get(kind)
    found, rest = [], {}
    for path, node in nnx.iter_graph(network):
        place = ".".join(map(str, path))
        if isinstance(node, nnx.Variable):
            rest[id(node)] = (place, node)
        name = torch_name(table, place) if table else place if type(node) in LAYOUTS else None
        if name is None or node is None:
            continue
        if isinstance(node, nnx.Variable):
            found.append(TorchArray(name, None, node, tuple(range(len(node.shape)))))
        else:
            found += [
                TorchArray(f"{name}.{theirs}", node, getattr(node, ours), axes)
                for theirs, ours, axes in LAYOUTS[type(node)]
            ]
    for entry in found:
        rest.pop(id(entry.variable), None)
    wrong = [place for place, node in rest.values() if table or not isinstance(node, nnx.Param | Buffer)]
    if wrong:
        expected = (
            "arrays that are neither parameters nor buffers" if table is None else "arrays without a PyTorch name"
        )
        raise UserError(f"{kind} has {expected}: {', '.join(wrong)}.")
    return found + [TorchArray(place, None, node, tuple(range(len(node.shape)))) for place, node in rest.values()]


def torch_name(table: Mapping[str, str], place: str) -> str | None:
    """PyTorch's name of a place in our network; None where the table has none."""
    for theirs, ours in table.items():
        match = re.fullmatch(re.escape(ours).replace(r"\{\}", r"(\d+)"), place)
        if match:
            return theirs.format(*match.groups())
    return None


def state_dict(network: nnx.Module) -> StateDict:
    """A network's arrays under PyTorch names and in PyTorch's layouts."""
    return {entry.name: entry.to_torch(entry.variable[...]) for entry in torch_arrays(network)}


def check_state_dict(network: nnx.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """UserError that lists every missing, unexpected, mis-shaped and non-finite array; `network` may be without any."""
    shapes = {entry.name: entry.shape for entry in torch_arrays(network)}
    check_arrays(type(network).__name__, shapes, values, dtype)


def load_state_dict(network: nnx.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """Fill a network with a state dict, in place, rounded or widened to `dtype`. UserError where it does not fit."""
    check_state_dict(network, values, dtype)
    for name, entry in {entry.name: entry for entry in torch_arrays(network)}.items():
        entry.variable.set_value(entry.from_torch(np.asarray(values[name]).astype(dtype)))


def to_device(network: nnx.Module) -> None:
    """Put a network's arrays on JAX's device, in place: NumPy's would go there anew at each call."""
    nnx.update(network, jax.device_put(nnx.state(network)))
