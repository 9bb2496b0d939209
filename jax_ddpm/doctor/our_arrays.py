"""Our arrays as PyTorch has them: which are one array there, and in which layouts."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flax import linen, nnx

from jax_ddpm.doctor.flax_side import FlaxNetwork, NnxNetwork
from jax_ddpm.doctor.names import ROLES
from jax_ddpm.doctor.records import Call
from jax_ddpm.weights.layouts import Axes, Heads, layer_parts
from jax_ddpm.weights.torch_names import TORCH_NAMES, has_complete_table, own_table


@dataclass
class Unit:
    """An array of PyTorch as our network has it: one array of ours, or the three of a packed attention."""

    ours: tuple[str, ...]
    module: str
    """Path of the layer that owns it."""
    name: str
    """PyTorch's name inside the layer, such as "weight"."""
    layouts: list[Axes | Heads]
    """The layout of the kind of layer, or all that are usual for arrays like this."""


def network_table(network: FlaxNetwork) -> Mapping[str, str]:
    """The table of names that belongs to a network, if it is known."""
    if not isinstance(network, NnxNetwork):
        return getattr(type(network.module), "TORCH_NAMES", {})
    if has_complete_table(network.module):
        return TORCH_NAMES[type(network.module).__name__]
    return own_table(network.module)


def our_units(network: FlaxNetwork, ours: Mapping[str, np.ndarray], calls: Mapping[str, Call]) -> list[Unit]:
    """Our arrays as PyTorch has them. `calls` has a call of each of our modules by path."""
    units, known = [], set()
    if isinstance(network, NnxNetwork):
        paths = {id(variable): path for path, variable in network.variables().items()}
        for keys, node in nnx.iter_graph(network.module):
            for name, variables, layout in (layer_parts(node) or ()) if isinstance(node, nnx.Module) else ():
                names = tuple(paths[id(variable)] for variable in variables)
                if not known & set(names):
                    known |= set(names)
                    module, _, name = ".".join([*map(str, keys), name]).rpartition(".")
                    units.append(Unit(names, module, name, [layout]))
    else:
        units += linen_attention(ours)
        known = {path for unit in units for path in unit.ours}
    for path, value in ours.items():
        if path not in known:
            module, _, name = path.rpartition(".")
            layouts = linen_layouts(name, value, calls.get(module)) or usual_layouts(name, value)
            units.append(Unit((path,), module, ROLES.get(name, name), layouts))
    order = {path: number for number, path in enumerate(ours)}
    return sorted(units, key=lambda unit: order[unit.ours[0]])


def linen_attention(ours: Mapping[str, np.ndarray]) -> list[Unit]:
    """Packed query, key and value, and the output, of Linen's attention."""
    units = []
    for module in [path.removesuffix(".query.kernel") for path in ours if path.endswith(".query.kernel")]:
        for name, kind in (("kernel", "kernel"), ("bias", "bias")):
            paths = tuple(f"{module}.{part}.{name}" for part in ("query", "key", "value"))
            if all(path in ours and ours[path].ndim == (3 if name == "kernel" else 2) for path in paths):
                units.append(Unit(paths, module, f"in_proj_{'weight' if name == 'kernel' else 'bias'}", [Heads(kind)]))
        if ours.get(f"{module}.out.kernel", np.zeros(0)).ndim == 3:
            units.append(Unit((f"{module}.out.kernel",), f"{module}.out_proj", "weight", [Heads("output")]))
            if f"{module}.out.bias" in ours:
                units.append(Unit((f"{module}.out.bias",), f"{module}.out_proj", "bias", [Axes((0,))]))
    return units


def linen_layouts(name: str, value: np.ndarray, call: Call | None) -> list[Axes | Heads]:
    """The layout of an array of Linen's own layers; none for other layers."""
    space = tuple(range(value.ndim - 2))
    kind = "" if call is None or name != "kernel" or not isinstance(call.module, linen.Module) else call.kind
    if kind == "Dense" and value.ndim == 2:
        return [Axes((1, 0))]
    if kind == "Conv":
        return [Axes((value.ndim - 1, value.ndim - 2, *space))]
    if kind == "ConvTranspose":
        flipped = () if call.settings.get("transpose_kernel") else tuple(range(2, value.ndim))
        channels = (value.ndim - 2, value.ndim - 1)
        return [Axes((*(channels[::-1] if not flipped else channels), *space), flipped)]
    return []


def usual_layouts(name: str, value: np.ndarray) -> list[Axes | Heads]:
    """Layouts of an array whose kind of layer is not known: all axes orders, the usual ones first."""
    if name == "embedding":
        return [Axes((0, 1))]
    usual = {2: ((1, 0),), 3: ((2, 1, 0), (1, 2, 0)), 4: ((3, 2, 0, 1), (2, 3, 0, 1)), 5: ((4, 3, 0, 1, 2),)}
    if name != "kernel":  # an array of the user's own, most likely as in PyTorch
        usual = {value.ndim: (tuple(range(value.ndim)), *usual.get(value.ndim, ()))}
    orders = dict.fromkeys((*usual.get(value.ndim, ()), *itertools.permutations(range(value.ndim))))
    return [Axes(order) for order in orders]


def fits(unit: Unit, theirs: np.ndarray, ours: Mapping[str, np.ndarray]) -> bool:
    return bool(fitting_layouts(unit, theirs, ours))


def fitting_layouts(unit: Unit, theirs: np.ndarray, ours: Mapping[str, np.ndarray]) -> list[Axes | Heads]:
    shapes = [ours[path].shape for path in unit.ours]
    return [layout for layout in unit.layouts if layout.shape(shapes) == theirs.shape]


def unit_shape(unit: Unit, ours: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    return unit.layouts[0].shape([ours[path].shape for path in unit.ours])
