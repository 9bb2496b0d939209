"""Pairs the parameters of two networks: by name or table, by values, by order of execution and shape."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jax_ddpm.doctor.flax_side import FlaxNetwork
from jax_ddpm.doctor.layouts import parameter_axes
from jax_ddpm.doctor.names import general_table, plain_name, translated
from jax_ddpm.doctor.our_arrays import Unit, fits, fitting_layouts, network_table, our_units
from jax_ddpm.doctor.records import Call, relative_error
from jax_ddpm.doctor.unnamed_arrays import SAME, equal_values, is_constant, packed_arrays, same_content, same_order
from jax_ddpm.weights.layouts import Axes, Heads


@dataclass
class ParameterPair:
    theirs: str
    ours: tuple[str, ...]
    layout: Axes | Heads
    how: str
    """ "name", "value" or "order"."""
    error: float
    """Relative difference of the values."""
    ambiguous: tuple[Axes | Heads, ...] = ()
    """Other layouts that the shape allows, where the kind of layer is not known and the values do not tell."""
    remark: str = ""
    """What is wrong with the values, such as a kernel that is not transposed."""
    constant: bool = False
    """Whether all values of theirs are the same, which tells nothing about the pair."""


@dataclass
class ParameterPairing:
    pairs: list[ParameterPair] = field(default_factory=list)
    unpaired_theirs: list[str] = field(default_factory=list)
    unpaired_ours: list[str] = field(default_factory=list)
    their_buffers: list[str] = field(default_factory=list)
    """Buffers of theirs that ours does not have, such as counters. They are not missed."""
    tied: list[tuple[str, ...]] = field(default_factory=list)
    """Names of theirs that are one array."""
    table: dict[str, str] = field(default_factory=dict)
    """The TORCH_NAMES that gives the pairs, where names differ."""
    transferred: bool = False
    """Whether ours was compared with their weights."""

    @property
    def different(self) -> list[ParameterPair]:
        return [pair for pair in self.pairs if not pair.error <= SAME]


def pair_parameters(
    theirs: Mapping[str, np.ndarray],
    network: FlaxNetwork,
    their_calls: Sequence[Call],
    our_calls: Sequence[Call],
    table: Mapping[str, str] | None = None,
) -> ParameterPairing:
    """Pair every array of theirs with one of ours.

    Args:
        theirs: their parameters and buffers by name.
        table: {PyTorch name: path in our network} for names that differ, as TORCH_NAMES of a network's class.
    """
    ours = network.parameters()
    table = network_table(network) if table is None else table
    units = our_units(network, ours, {call.path: call for call in our_calls})
    pairing = ParameterPairing()
    free = dict.fromkeys(theirs)
    left = []
    by_name = {}
    for name in theirs:
        by_name.setdefault(plain_name(translated(table, name)), name)
    for unit in units:
        name = by_name.get(plain_name(f"{unit.module}.{unit.name}"))
        if name in free and fits(unit, theirs[name], ours):
            free.pop(name)
            pairing.pairs.append(matched(unit, name, theirs, ours, "name"))
        else:
            left.append(unit)
    for unit, name in equal_values(left, list(free), theirs, ours):
        free.pop(name)
        left.remove(unit)
        pairing.pairs.append(matched(unit, name, theirs, ours, "value"))
    for parts, joined, name in packed_arrays(left, list(free), theirs, ours):
        free.pop(name)
        left = [unit for unit in left if unit not in parts]
        units = [*units, joined]
        pairing.pairs.append(matched(joined, name, theirs, ours, "value"))
    for unit, name in same_order(left, list(free), theirs, ours, their_calls, our_calls, pairing):
        free.pop(name)
        left.remove(unit)
        pairing.pairs.append(matched(unit, name, theirs, ours, "order"))
    pairing.unpaired_theirs = list(free)
    pairing.unpaired_ours = [path for unit in left for path in unit.ours]
    position = {name: number for number, name in enumerate(theirs)}
    pairing.pairs.sort(key=lambda pair: position[pair.theirs])
    pairing.table = proposed_table(pairing.pairs, units)
    return pairing


def matched(unit: Unit, name: str, theirs: Mapping, ours: Mapping, how: str) -> ParameterPair:
    """The pair with the layout that makes the values equal, else the usual one."""
    values = [ours[path] for path in unit.ours]
    layouts = fitting_layouts(unit, theirs[name], ours)
    errors = [relative_error(layout.to_torch(*values), theirs[name]) for layout in layouts]
    best = int(np.argmin(errors))
    if errors[best] <= SAME:
        return ParameterPair(name, unit.ours, layouts[best], how, errors[best], constant=is_constant(theirs[name]))
    square = tuple(layouts[1:2]) if theirs[name].ndim > 1 and layouts[1:2] and not same_but_space(*layouts[:2]) else ()
    text = remark(values, theirs[name], theirs)
    return ParameterPair(name, unit.ours, layouts[0], how, errors[0], square, text, is_constant(theirs[name]))


def same_but_space(a: Axes | Heads, b: Axes | Heads) -> bool:
    """Whether two layouts differ in the order of height and width only."""
    return isinstance(a, Axes) and isinstance(b, Axes) and len(a.axes) > 2 and a.axes[:2] == b.axes[:2]


def remark(values: list[np.ndarray], target: np.ndarray, theirs: Mapping[str, np.ndarray]) -> str:
    """How values that differ come about, if that can be told."""
    if any(np.isnan(value).any() for value in values):
        return "not filled: NaN"
    if len(values) > 1:
        return ""
    value, shape = values[0], values[0].shape
    if value.ndim > 1 and not is_constant(target):
        for axes in parameter_axes(target.shape, shape):
            moved = axes.to_ours(target)
            spatial = range(value.ndim - 2)
            for flips in itertools.chain.from_iterable(
                itertools.combinations(spatial, n) for n in range(value.ndim - 1)
            ):
                if relative_error(np.flip(value, flips), moved) <= SAME:
                    flipped = f", flipped on the axes {flips}" if flips else ""
                    return f"ours is theirs transposed by {axes.permutation}{flipped}"
    for name, other in theirs.items():
        if other is not target and other.size == value.size and not is_constant(other) and same_content(other, value):
            return f"ours has the values of {name}"
    return ""


def proposed_table(pairs: Sequence[ParameterPair], units: Sequence[Unit]) -> dict[str, str]:
    """The shortest TORCH_NAMES that gives the pairs."""
    unit_of = {unit.ours: unit for unit in units}
    lines = {}
    for pair in pairs:
        unit = unit_of[pair.ours]
        ours, suffix = f"{unit.module}.{unit.name}".lstrip("."), f".{unit.name}"
        if pair.theirs.endswith(suffix) and ours.endswith(suffix):
            lines[pair.theirs.removesuffix(suffix)] = unit.module
        else:
            lines[pair.theirs] = pair.ours[0]
    return general_table(lines)


def tied_names(module) -> list[tuple[str, ...]]:
    """Groups of names of a torch module that are one parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]
