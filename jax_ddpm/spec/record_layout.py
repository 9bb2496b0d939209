"""Record the layout of a checkpoint while it is read."""

import math
from collections.abc import Sequence

from jax_ddpm.spec.file_content import Keys
from jax_ddpm.spec.find_weights import Found
from jax_ddpm.spec.layout import KeptArray, Layout, Place, make_names
from jax_ddpm.spec.read_content import ModelFile, read_arrays
from jax_ddpm.spec.stored_array import Array

MAX_KEPT = 2**16  # elements, of all arrays beside the weights, such as the tables of a diffusion


def record_layout(file: ModelFile, found: Sequence[Found], chosen: Found) -> Layout:
    """Every place of a file that has weights of the chosen network, raw or averaged.

    The smallest of the other arrays in these places are kept, up to MAX_KEPT elements.
    """
    same = [each for each in found if each.is_complete and each.network == chosen.network]
    by_keys: dict[Keys, list[Found]] = {}
    for each in [chosen, *(other for other in same if other is not chosen)]:
        by_keys.setdefault(each.keys, []).append(each)
    dictionaries = {group.keys: group.arrays for group in file.content.dictionaries}
    places, budget = [], MAX_KEPT
    for keys, sets in by_keys.items():
        theirs = {name for each in sets for name in each.names.values()}
        others = {name: array for name, array in dictionaries.get(keys, {}).items() if name not in theirs}
        small = choose_small(others, budget)
        budget -= sum(math.prod(others[name].shape) for name in small)
        values = read_arrays({name: others[name] for name in small}, file.path)
        places.append(
            Place(
                keys=keys,
                names=tuple(make_names(each.names, chosen.arrays) for each in sets),
                is_list=keys not in dictionaries,
                kept=tuple(KeptArray.of(name, value) for name, value in values.items()),
                left_out=tuple(name for name in others if name not in small),
            )
        )
    return Layout(tuple(places))


def choose_small(arrays: dict[str, Array], budget: int) -> list[str]:
    """Names of the smallest arrays, with `budget` elements in all."""
    chosen = []
    for name, array in sorted(arrays.items(), key=lambda item: math.prod(item[1].shape)):
        budget -= math.prod(array.shape)
        if budget < 0:
            break
        chosen.append(name)
    return chosen
