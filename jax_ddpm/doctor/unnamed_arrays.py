"""Pairs arrays that no name joins: by their values, and by the order of execution and shapes of their layers."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from jax_ddpm.doctor.names import ROLES, last, owner
from jax_ddpm.doctor.our_arrays import Unit, fits, unit_shape
from jax_ddpm.doctor.records import relative_error
from jax_ddpm.weights.layouts import Axes, Heads

SAME = 1e-6  # relative difference of arrays that are equal but for float32's rounding


def same_content(a: np.ndarray, b: np.ndarray) -> bool:
    return (
        abs(a.sum() - b.sum()) <= SAME * np.abs(a).sum()
        and relative_error(np.sort(b.ravel()), np.sort(a.ravel())) <= SAME
    )


def is_constant(value: np.ndarray) -> bool:
    return value.size == 0 or bool((value == value.flat[0]).all())


def equal_values(units: list[Unit], names: list[str], theirs: Mapping, ours: Mapping) -> list[tuple[Unit, str]]:
    """Pairs of arrays that no name joins and that have the same values, which no other array has."""
    found = []
    for unit in units:
        values = np.concatenate([ours[path].ravel() for path in unit.ours])
        if is_constant(values):
            continue
        equal = [name for name in names if fits(unit, theirs[name], ours) and same_content(theirs[name], values)]
        if len(equal) == 1:
            found.append((unit, equal[0]))
    once = [name for _, name in found]
    return [(unit, name) for unit, name in found if once.count(name) == 1]


def packed_arrays(
    units: Sequence[Unit], names: Sequence[str], theirs: Mapping, ours: Mapping
) -> list[tuple[list[Unit], Unit, str]]:
    """Arrays of theirs, such as packed projections, that hold two or three of ours one after another, by their values.

    Returns our arrays, the unit that joins them, and their name.
    """
    found, taken = [], set()
    kinds = {1: (Axes((0,)), "bias"), 2: (Axes((1, 0)), "kernel")}
    for name in names:
        target = theirs[name]
        layout, kind = kinds.get(target.ndim, (None, ""))
        parts = [unit for unit in units if len(unit.ours) == 1 and layout in unit.layouts and id(unit) not in taken]
        for count in (3, 2):
            if layout is None or target.shape[0] % count or is_constant(target):
                continue
            pieces, chosen = np.split(target, count), []
            for piece in pieces:
                same = [
                    unit
                    for unit in parts
                    if unit not in chosen and relative_error(layout.to_torch(ours[unit.ours[0]]), piece) <= SAME
                ]
                chosen += same[:1]
            if len(chosen) == count:
                taken |= {id(unit) for unit in chosen}
                paths = tuple(path for unit in chosen for path in unit.ours)
                around = owner(chosen[0].module)
                found.append((chosen, Unit(paths, around, name.rpartition(".")[2], [Heads(kind)]), name))
                break
    return found


def same_order(units, names, theirs, ours, their_calls, our_calls, pairing) -> list[tuple[Unit, str]]:
    """Pairs of arrays of layers that are at the same position in the order of execution and have the same shapes.

    Arrays whose layer has other arrays that are paired go to the partner of that layer.
    """
    found = []
    partner = {owner(pair.theirs): owner(pair.ours[0]) for pair in pairing.pairs}
    their_layers, our_layers = {}, {}
    for name in names:
        their_layers.setdefault(owner(name), []).append(name)
    for unit in units:
        our_layers.setdefault(unit.module, []).append(unit)

    def join(their_names, our_units):
        for unit in our_units:
            rest = [name for name in their_names if fits(unit, theirs[name], ours)]
            rest.sort(key=lambda name: ROLES.get(last(name), last(name)) != last(f".{unit.name}"))
            if rest:
                their_names = [name for name in their_names if name != rest[0]]
                found.append((unit, rest[0]))

    for their_layer, our_layer in partner.items():
        if their_layer in their_layers and our_layer in our_layers:
            join(their_layers.pop(their_layer), our_layers.pop(our_layer))

    def ordered(layers, calls):
        position = {}
        for call in calls:
            position.setdefault(call.path, len(position))

        def place(layer):
            """The position of the layer, or of the module around it, if it is not called itself; then the depth."""
            around = layer
            while around and around not in position:
                around = owner(around)
            return position[around] if around or not layer else len(position), layer.count(".")

        return sorted(layers, key=place)

    mine, yours = ordered(our_layers, our_calls), ordered(their_layers, their_calls)

    def shapes(arrays):
        return tuple(sorted(tuple(sorted(size for size in array if size > 1)) for array in arrays))

    ours_shapes = [shapes(unit_shape(unit, ours) for unit in our_layers[layer]) for layer in mine]
    their_shapes = [shapes(theirs[name].shape for name in their_layers[layer]) for layer in yours]
    for block in difflib.SequenceMatcher(None, their_shapes, ours_shapes, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            join(their_layers[yours[block.a + offset]], our_layers[mine[block.b + offset]])
    return found
