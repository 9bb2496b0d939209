"""Name the known network that a file's arrays resemble most, by their names and shapes."""

from collections import Counter
from collections.abc import Mapping, Sequence

from jax_ddpm.spec.file_content import Dictionary, place
from jax_ddpm.spec.find_weights import Found, ShapesOf, under
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.text import some

OWN_NETWORK = (
    "If it is another network, port it: docs/your-own-network.md (Bring your own network) goes from the PyTorch module "
    "to the same picture."
)
MAX_NAMES = 10_000  # of a dictionary, to compare
MAX_PREFIX = 200  # letters before a network's names
CHANNELS = (1, 3)  # of images: shapes of the known networks are compared for these


def in_common(arrays: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """How many of a file's arrays are those of a network, such as "44 of 61 arrays".

    arrays, expected: shapes by name, of the file and of the network.
    """
    names = [name for name in arrays if name in expected]
    same = sum(tuple(arrays[name]) == tuple(expected[name]) for name in names)
    more = f" ({len(names) - same} more have only the name)" if len(names) > same else ""
    return f"{same} of {len(arrays)} arrays{more}"


def of_found(nearest: Found) -> str:
    """How many arrays of a network that was recognised, but is not complete, are as in this network."""
    same = len(nearest.names) - len(nearest.misshapen)
    total = len(nearest.names) + len(nearest.unexpected)
    more = f" ({len(nearest.misshapen)} more have only the name)" if nearest.misshapen else ""
    return f"{same} of {total} arrays{more}"


def nearest_by_names(
    dictionaries: list[Dictionary], shapes_of: ShapesOf, networks: Sequence[NetworkConfig]
) -> list[str]:
    """Lines about the one of the networks that has most names and shapes in common with one of the dictionaries."""
    best: tuple[tuple[int, int], str, Dictionary | None, str, Mapping] = ((0, 0), "", None, "", {})
    for network in networks:
        for expected in (shapes_of(network, channels) for channels in CHANNELS):
            for dictionary in dictionaries:
                prefix = likeliest_prefix(dictionary, expected)
                if prefix is None:
                    continue
                shapes = shapes_under(dictionary, prefix)
                names = [name for name in shapes if name in expected]
                score = len(names), sum(shapes[name] == tuple(expected[name]) for name in names)
                if score > best[0]:
                    best = score, network.name, dictionary, prefix, expected
    _, name, dictionary, prefix, expected = best
    if dictionary is None:
        names = some(list(dictionaries[0].arrays), 4) if dictionaries else "none"
        return [f"No name is that of a known network. The first names: {names}."]
    shapes = shapes_under(dictionary, prefix)
    missing = [each for each in sorted(expected) if each not in shapes]
    unexpected = [f"{prefix}{each}" for each in shapes if each not in expected]
    where = f"{place(dictionary.keys)}{under(prefix)}".strip() or "the file itself"
    return [
        f"Nearest: {name}. In {where}, {in_common(shapes, expected)} are as in {name}.",
        *([f"Missing: {some(missing)}."] if missing else []),
        *([f"Unexpected: {some(unexpected)}."] if unexpected else []),
    ]


def likeliest_prefix(dictionary: Dictionary, expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """The start of names after which most of the network's names follow; None if none does."""
    prefixes = Counter(
        name[:start]
        for name in list(dictionary.arrays)[:MAX_NAMES]
        for start in (0, *(number + 1 for number, letter in enumerate(name[:MAX_PREFIX]) if letter == "."))
        if name[start:] in expected
    )
    return prefixes.most_common(1)[0][0] if prefixes else None


def shapes_under(dictionary: Dictionary, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a dictionary's arrays whose names start with the prefix, by the names after it."""
    return {
        name.removeprefix(prefix): tuple(array.shape)
        for name, array in dictionary.arrays.items()
        if name.startswith(prefix)
    }
