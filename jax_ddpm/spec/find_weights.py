"""Find the weights of a network in the content of a file, whatever holds them and whatever their names start with."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jax_ddpm.spec.diffusers_folder import current_name
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.file_content import ArrayList, Dictionary, FileContent, Keys, place
from jax_ddpm.spec.infer_network import RECOGNISERS, Recognised
from jax_ddpm.spec.known_extras import EMA, NO_WEIGHTS, RAW, WRAPPERS, is_buffer, is_extra
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.own_networks import candidates, recognise_own
from jax_ddpm.spec.stored_array import Array

Shapes = Mapping[str, tuple[int, ...]]
ShapesOf = Callable[[NetworkConfig, int], Shapes]
"""The names and shapes of a network's arrays in PyTorch, from its settings and its number of image channels."""
Recognisers = Mapping[str, Callable[[Mapping[str, Array]], Recognised | None]]
"""By the name of an array that the network has."""


MAX_PREFIXES = 32  # of networks in one dictionary


@dataclass(frozen=True)
class Found:
    """Weights of a network in a file, complete or not."""

    keys: Keys
    """The keys that lead to the dictionary, or list, with the weights; () for the content of the file itself."""
    prefix: str
    """What the names in the dictionary start with, such as "module."."""
    names: dict[str, str]
    """From the network's names to the names in the dictionary, in its order."""
    arrays: dict[str, Array]
    """By the network's names. Of an average, with the buffers of the raw weights."""
    recognised: Recognised
    network: NetworkConfig
    is_ema: bool
    extras: dict[str, Array] = field(default_factory=dict)
    """Arrays of the same dictionary that the network does not have and that are known, by their names in it."""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    """Problems, as text."""
    conflict: UserError | None = None
    """Why the settings cannot be those of the network."""

    @property
    def is_complete(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen or self.conflict)

    @property
    def place(self) -> str:
        """Where the weights are in the file, such as ["model"] under "module."."""
        return f"{place(self.keys)}{under(self.prefix)}".strip() or "the file itself"


def under(prefix: str) -> str:
    """ " under "module."" for the prefix "module."; nothing for no prefix."""
    return f' under "{prefix if len(prefix) <= 80 else "..." + prefix[-77:]}"' if prefix else ""


def find_weights(
    content: FileContent,
    shapes_of: ShapesOf | None,
    settings: Mapping[str, Mapping[str, Any]],
    given: NetworkConfig | None = None,
    recognisers: Recognisers = RECOGNISERS,
) -> list[Found]:
    """All weights of known networks in a file; those that are not complete have problems.

    shapes_of: None: what is there is not compared with what the network has, and networks of the user's own are not
    found.
    settings: by the network's name, settings that shapes do not show.
    given: the only network to look for.
    recognisers: of the networks to look for, beside the user's own.

    Raises:
        UserError: an array is there twice, under names that mean the same.
    """
    found: list[Found] = []
    groups = [group for group in content.dictionaries if not NO_WEIGHTS.search(place(group.keys))]
    for dictionary in groups:
        if given is None:
            found += find_in(dictionary, shapes_of, settings, recognisers)
        if shapes_of is not None:
            found += find_own(dictionary, shapes_of, settings, given)
    averages: list[Found] = []
    for raw in [weights for weights in found if weights.is_complete and not weights.is_ema]:
        for dictionary in groups:
            averages += [*averages_without_buffers(dictionary, raw), *averages_without_dots(dictionary, raw)]
        averages += [average for group in content.lists if (average := listed_average(group, raw)) is not None]
    places = [average.place for average in averages]
    return [weights for weights in found if weights.is_complete or weights.place not in places] + averages


def find_in(
    dictionary: Dictionary,
    shapes_of: ShapesOf | None,
    settings: Mapping[str, Mapping[str, Any]],
    recognisers: Recognisers,
) -> list[Found]:
    """The weights in one dictionary, one for each prefix of names under which a network is recognised."""
    originals: dict[str, str] = {}
    twice = None
    for name in dictionary.arrays:
        plain = current_name(WRAPPERS.sub("", name))
        twice = plain if plain in originals else twice
        originals[plain] = name
    prefixes: dict[str, Recognised] = {}
    for name in originals:
        for anchor, recognise in recognisers.items():
            if (name == anchor or name.endswith(f".{anchor}")) and len(prefixes) < MAX_PREFIXES:
                prefix = name.removesuffix(anchor)
                recognised = recognise(
                    {
                        name.removeprefix(prefix): dictionary.arrays[original]
                        for name, original in originals.items()
                        if name.startswith(prefix)
                    }
                )
                if recognised is not None:
                    prefixes[prefix] = recognised
    if prefixes and twice is not None:
        raise UserError(f"{place(dictionary.keys) or 'The file'} has {twice} twice, under different names.")
    return [
        compare(dictionary, originals, prefix, recognised, tuple(prefixes), shapes_of, settings)
        for prefix, recognised in prefixes.items()
    ]


def find_own(
    dictionary: Dictionary,
    shapes_of: ShapesOf,
    settings: Mapping[str, Mapping[str, Any]],
    given: NetworkConfig | None,
) -> list[Found]:
    """The weights in one dictionary of the network `given`, or else of registered networks of the user's own."""
    originals = {WRAPPERS.sub("", name): name for name in dictionary.arrays}
    arrays = {name: dictionary.arrays[original] for name, original in originals.items()}
    found = []
    for candidate in candidates(settings, given):
        own_settings = {} if given is not None else settings.get(candidate.config.name, {})
        prefixes = recognise_own(arrays, candidate, own_settings, shapes_of)
        found += [
            compare(
                dictionary,
                originals,
                prefix,
                recognised,
                tuple(prefixes),
                shapes_of,
                {recognised.config.name: own_settings},
            )
            for prefix, recognised in prefixes.items()
        ]
    return found


def compare(
    dictionary: Dictionary,
    originals: dict[str, str],
    prefix: str,
    recognised: Recognised,
    prefixes: tuple[str, ...],
    shapes_of: ShapesOf | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> Found:
    """The arrays under a prefix, compared with those that the recognised network has."""
    others = tuple(other for other in prefixes if other.startswith(prefix) and other != prefix)
    under = [name for name in originals if name.startswith(prefix) and not (others and name.startswith(others))]
    names = {name.removeprefix(prefix): originals[name] for name in under}
    arrays = {name: dictionary.arrays[original] for name, original in names.items()}
    base = recognised.config
    is_ema = is_average(dictionary.keys, prefix, prefixes, originals)
    weights = Found(dictionary.keys, prefix, names, arrays, recognised, base, is_ema)
    try:
        network = recognised.with_settings(settings.get(base.name, {}))
        shapes = (
            {name: tuple(array.shape) for name, array in arrays.items() if not is_extra(name, array.ndim)}
            if shapes_of is None
            else shapes_of(network, recognised.image_channels)
        )
    except UserError as error:
        return replace(weights, conflict=error)
    extras = {name for name in names if name not in shapes and is_extra(name, arrays[name].ndim)}
    return replace(
        weights,
        network=network,
        names={name: original for name, original in names.items() if name in shapes},
        arrays={name: array for name, array in arrays.items() if name in shapes},
        extras={names[name]: arrays[name] for name in extras},
        missing=tuple(f"{prefix}{name} {shape}" for name, shape in sorted(shapes.items()) if name not in arrays),
        unexpected=tuple(names[name] for name in names if name not in shapes and name not in extras),
        misshapen=tuple(
            f"{names[name]} is {tuple(arrays[name].shape)}, expected {shape}"
            for name, shape in sorted(shapes.items())
            if name in arrays and tuple(arrays[name].shape) != tuple(shape)
        ),
    )


def is_average(keys: Keys, prefix: str, prefixes: tuple[str, ...], names: Mapping[str, str]) -> bool:
    """Whether weights are an average, by the words in their keys and prefix.

    prefixes: of all weights in the same dictionary. If one of them says that it is an average, the others are raw.
    """
    parents = {prefix[: match.end()] for match in re.finditer(r"^|\.", prefix)}
    if any(f"{parent}n_averaged" in names for parent in parents) or EMA.search(prefix):
        return not RAW.search(prefix.rpartition("ema")[2])
    if RAW.search(prefix) or any(EMA.search(other) for other in prefixes):
        return False
    return any(EMA.search(str(key)) for key in keys) and not RAW.search(str(keys[-1]))


def averages_without_buffers(dictionary: Dictionary, raw: Found) -> Iterator[Found]:
    """Averages of the parameters alone, under their names; the buffers are those of the raw weights."""
    trained = [name for name in raw.names if not is_buffer(name)]
    if len(trained) == len(raw.names):
        return
    originals = {current_name(WRAPPERS.sub("", name)): name for name in dictionary.arrays}
    for name in originals:
        prefix = name.removesuffix(trained[0])
        is_named = name == trained[0] or name.endswith(f".{trained[0]}")
        if not is_named or not (EMA.search(prefix) or EMA.search(place(dictionary.keys))):
            continue
        names = {name: originals[f"{prefix}{name}"] for name in trained if f"{prefix}{name}" in originals}
        if len(names) == len(trained) and not any(
            f"{prefix}{name}" in originals for name in raw.names if is_buffer(name)
        ):
            arrays = {name: dictionary.arrays[original] for name, original in names.items()}
            yield from average_of(raw, dictionary.keys, prefix, names, arrays)


def averages_without_dots(dictionary: Dictionary, raw: Found) -> Iterator[Found]:
    """Averages under the parameters' names without dots, after a prefix such as "model_ema."."""
    by_prefix: dict[str, dict[str, str]] = {}
    for name in dictionary.arrays:
        first, _, rest = name.rpartition(".")
        if EMA.search(first):
            by_prefix.setdefault(f"{first}.", {})[rest] = name
    trained = [name for name in raw.names if not is_buffer(name)]
    for prefix, rests in by_prefix.items():
        for start in sorted(raw.prefix[match.end() :] for match in re.finditer(r"^|\.", raw.prefix)):
            names = {name: rests.get(f"{start}{name}".replace(".", "")) for name in trained}
            if all(names.values()):
                arrays = {name: dictionary.arrays[original] for name, original in names.items()}
                yield from average_of(raw, dictionary.keys, prefix, names, arrays)
                break


def listed_average(group: ArrayList, raw: Found) -> Found | None:
    """The average whose arrays are a list in the order of the raw weights' parameters; None if shapes do not fit."""
    trained = [name for name in raw.names if not is_buffer(name)]
    for names in (list(raw.names), trained) if EMA.search(place(group.keys)) else ():
        if len(names) == len(group.arrays):
            numbers = {name: str(number) for number, name in enumerate(names)}
            arrays = dict(zip(names, group.arrays, strict=True))
            return next(average_of(raw, group.keys, "", numbers, arrays), None)
    return None


def average_of(
    raw: Found, keys: Keys, prefix: str, names: dict[str, str], arrays: Mapping[str, Array]
) -> Iterator[Found]:
    """The average of these raw weights that `arrays` are, if they have the same shapes."""
    if all(tuple(array.shape) == tuple(raw.arrays[name].shape) for name, array in arrays.items()):
        arrays = {**raw.arrays, **arrays}
        yield replace(raw, keys=keys, prefix=prefix, names=names, arrays=arrays, is_ema=True, extras={})
