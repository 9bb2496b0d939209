"""Convert a network's arrays to and from a PyTorch state dict.

A state dict here is a dict of NumPy arrays with PyTorch's names and layouts. Conversion is strict: each array of the
network needs exactly one array of the state dict, and the other way round.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx

from jax_ddpm import unets
from jax_ddpm.layers import Buffer
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import BUILT_IN, NetworkConfig
from jax_ddpm.spec.state_dict import check_arrays
from jax_ddpm.spec.types import StateDict
from jax_ddpm.weights.layouts import Axes, Heads, layer_parts
from jax_ddpm.weights.torch_names import has_complete_table, name_of, own_table, torch_name


@dataclass(frozen=True)
class TorchArray:
    """One array of a network in PyTorch, and the variables that it is made of: one, or those of a packed attention."""

    name: str
    """PyTorch's name."""
    layer: nnx.Module | None
    """The layer that the array belongs to, if it is one of `weights.layouts`."""
    variables: tuple[nnx.Variable, ...]
    """Our arrays."""
    layout: Axes | Heads
    """How they lie in PyTorch's array."""

    @property
    def variable(self) -> nnx.Variable:
        """The first of our arrays."""
        return self.variables[0]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of our arrays."""
        return [tuple(variable.shape) for variable in self.variables]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch."""
        return self.layout.shape(self.shapes)

    def to_torch(self, *values) -> np.ndarray:
        """PyTorch's array of the values of our arrays."""
        return self.layout.to_torch(*values)

    def read(self) -> np.ndarray:
        """The value as PyTorch has it."""
        return self.to_torch(*(variable[...] for variable in self.variables))

    def write(self, value) -> None:
        """Fill our arrays with PyTorch's."""
        for variable, ours in zip(self.variables, self.layout.from_torch(value, self.shapes), strict=True):
            variable.set_value(ours)


def torch_arrays(network: nnx.Module) -> list[TorchArray]:
    """Every array of a network with its PyTorch name, as `torch_names.name_of` says.

    Raises UserError for arrays that the table of a built-in network does not name, for other variables than parameters
    and buffers in a network of the user's own, and for two arrays of the same name.
    """
    class_name, table, named = type(network).__name__, own_table(network), set()
    strict = has_complete_table(network)
    matched, unmatched, layers = [], {}, []
    for keys, node in nnx.iter_graph(network):
        path = ".".join(map(str, keys))
        if isinstance(node, nnx.Variable):
            unmatched[id(node)] = (path, node)
            if table and torch_name(table, path) is not None:
                named.add(id(node))
        elif (parts := layer_parts(node)) is not None:
            layers.append((path, node, parts))
    for path, node, parts in layers:
        name = name_of(network, path)
        for torch_parameter, variables, layout in () if name is None else parts:
            if not named & set(map(id, variables)):
                matched.append(TorchArray(f"{name}.{torch_parameter}".lstrip("."), node, variables, layout))
                for variable in variables:
                    unmatched.pop(id(variable), None)
    wrong = [path for path, node in unmatched.values() if not strict and not isinstance(node, nnx.Param | Buffer)]
    if wrong:
        raise UserError(f"{class_name} has arrays that are neither parameters nor buffers: {', '.join(wrong)}.")
    wrong = [path for path, _ in unmatched.values() if name_of(network, path) is None]
    if wrong:
        raise UserError(f"{class_name} has arrays without a PyTorch name: {', '.join(wrong)}.")
    matched += [same_layout(name_of(network, path), node) for path, node in unmatched.values()]
    twice = [name for name, count in Counter(array.name for array in matched).items() if count > 1]
    if twice:
        raise UserError(f"{class_name} has several arrays with the PyTorch name {twice[0]}: see its TORCH_NAMES.")
    return matched


def array_shapes(config: NetworkConfig, image_channels: int) -> dict[str, tuple[int, ...]]:
    """The shape in PyTorch of every array of a network, by PyTorch name."""
    return shapes_of_class(config, image_channels, unets.NETWORK_CLASSES.get(config.name))


@functools.lru_cache(maxsize=64)
def shapes_of_class(config: NetworkConfig, image_channels: int, _) -> dict[str, tuple[int, ...]]:
    """`array_shapes` for the class that is registered now."""
    if config.name in BUILT_IN:
        return {array.name: array.shape for array in torch_arrays(unets.build(config, image_channels))}
    try:
        network = nnx.eval_shape(lambda: unets.build(config, image_channels))  # Flax's layers draw no initial values
    except jax.errors.JAXTypeError:  # a constructor that needs values
        network = unets.build(config, image_channels)
    return {array.name: array.shape for array in torch_arrays(network)}


def same_layout(name: str, variable: nnx.Variable) -> TorchArray:
    """An array that has the same layout in PyTorch."""
    return TorchArray(name, None, (variable,), Axes(tuple(range(len(variable.shape)))))


def state_dict(network: nnx.Module) -> StateDict:
    """The PyTorch state dict of a network."""
    return {array.name: array.read() for array in torch_arrays(network)}


def check_state_dict(network: nnx.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """Raise UserError for missing, unexpected and wrongly shaped arrays, and those not finite in `dtype`.

    The network's arrays may be abstract: only their shapes are used.
    """
    shapes = {array.name: array.shape for array in torch_arrays(network)}
    check_arrays(type(network).__name__, shapes, values, dtype)


def load_state_dict(network: nnx.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """Fill a network with a PyTorch state dict, cast to `dtype`, in place. Raises UserError if it does not fit."""
    values = with_torch_names(network, values)
    check_state_dict(network, values, dtype)
    for array in torch_arrays(network):
        array.write(np.asarray(values[array.name]).astype(dtype))


def with_torch_names(network: nnx.Module, values: Mapping[str, np.ndarray]) -> StateDict:
    """A state dict in which arrays of Flax's layers may have the names and layouts of the network's attributes.

    Files of networks of the user's own were written like that before Flax's layers had PyTorch names.
    """
    values = dict(values)
    paths = {id(node): ".".join(map(str, keys)) for keys, node in nnx.iter_graph(network)}
    for array in torch_arrays(network):
        names = [paths[id(variable)] for variable in array.variables]
        old = [values.get(name) for name in names]
        if array.name not in values and [np.shape(value) for value in old] == array.shapes:
            values[array.name] = array.to_torch(*old)
            for name in names:
                del values[name]
    return values


def to_device(network: nnx.Module) -> None:
    """Put a network's arrays on the default device, in place. NumPy arrays would be transferred at every call."""
    nnx.update(network, jax.device_put(nnx.state(network)))
