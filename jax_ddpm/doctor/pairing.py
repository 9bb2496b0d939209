"""Pairs the calls of two networks: by the parameters inside, then by name, kind and order."""

from collections.abc import Mapping, Sequence

from jax_ddpm.doctor.layouts import activation_axes
from jax_ddpm.doctor.names import last, plain_name, translated
from jax_ddpm.doctor.parameters import ParameterPairing
from jax_ddpm.doctor.records import Call, Pair


def pair_calls(
    their_calls: Sequence[Call], our_calls: Sequence[Call], pairing: ParameterPairing, table: Mapping[str, str]
) -> list[Pair]:
    """The pairs in the order in which our calls begin, the whole networks' first."""
    theirs, ours = by_path(their_calls), by_path(our_calls)
    paths = {"": ""} | paths_by_parameters(theirs, ours, pairing)
    pairs = [pair for path, partner in paths.items() for pair in occurrences(theirs[path], ours[partner])]
    partner = {pair.theirs.number: pair.ours for pair in pairs}
    for theirs_around, ours_around in [(pair.theirs, pair.ours) for pair in pairs]:
        pairs += without_parameters(theirs_around, ours_around, their_calls, our_calls, partner, table)
    return sorted(pairs, key=lambda pair: pair.ours.number)


def by_path(calls: Sequence[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.path, []).append(call)
    return found


def occurrences(theirs: list[Call], ours: list[Call]) -> list[Pair]:
    """The calls of one module each, first with first."""
    return [Pair(a, b) for a, b in zip(theirs, ours, strict=False)]


def paths_by_parameters(
    theirs: Mapping[str, list[Call]], ours: Mapping[str, list[Call]], pairing: ParameterPairing
) -> dict[str, str]:
    """Their path to ours for modules that hold the same parameters, those of the modules inside included.

    Of modules around one another that hold the same ones, the innermost are a pair, and the others from outside in.
    """
    their_sets = modules_by_content(theirs, [(pair.theirs,) for pair in pairing.pairs])
    our_sets = modules_by_content(ours, [pair.ours for pair in pairing.pairs])
    found = {}
    for content, their_paths in their_sets.items():
        our_paths = our_sets.get(content, [])
        if not our_paths:
            continue
        found[their_paths[-1]] = our_paths[-1]
        their_rest, our_rest = their_paths[:-1], our_paths[:-1]
        for path in list(their_rest):
            same = [other for other in our_rest if last_name(other) == last_name(path)]
            if same and len(their_rest) != len(our_rest):
                found[path] = same[0]
                their_rest.remove(path)
                our_rest.remove(same[0])
        if len(their_rest) == len(our_rest):
            found |= dict(zip(their_rest, our_rest, strict=True))
    return {path: partner for path, partner in found.items() if (path == "") == (partner == "")}


def modules_by_content(
    paths: Mapping[str, list[Call]], arrays: Sequence[tuple[str, ...]]
) -> dict[frozenset, list[str]]:
    """From the set of numbers of the arrays inside to the paths of the called modules, outer ones first.

    An array that is in several parts is inside a module that has all of them.
    """
    content: dict[str, set[int]] = {path: set() for path in paths}
    for number, names in enumerate(arrays):
        for path in set.intersection(*(set(around(name)) for name in names)):
            if path in content:
                content[path].add(number)
    found: dict[frozenset, list[str]] = {}
    for path in sorted(paths, key=lambda path: len(path.split(".")) if path else 0):
        if content[path]:
            found.setdefault(frozenset(content[path]), []).append(path)
    return found


def around(name: str) -> list[str]:
    """The paths of the modules around an array."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts))]


def without_parameters(
    theirs: Call,
    ours: Call,
    their_calls: Sequence[Call],
    our_calls: Sequence[Call],
    partner: Mapping[int, Call],
    table: Mapping[str, str],
) -> list[Pair]:
    """Pairs of unpaired calls directly inside two calls, such as activations: of one name or, in order, one kind."""
    taken = {call.number for call in partner.values()}
    free_theirs = [call for call in their_calls if call.parent == theirs.number and call.number not in partner]
    free_ours = [call for call in our_calls if call.parent == ours.number and call.number not in taken]
    found = []

    def join(a: Call, b: Call) -> None:
        found.append(Pair(a, b))
        free_theirs.remove(a)
        free_ours.remove(b)

    for a in list(free_theirs):
        named = plain_name(translated(table, a.path))
        same = [b for b in free_ours if plain_name(b.path) == named and alike(a, b)]
        if same:
            join(a, same[0])
    for kind in {plain_kind(call) for call in free_theirs}:
        of_theirs = [call for call in free_theirs if plain_kind(call) == kind]
        of_ours = [call for call in free_ours if plain_kind(call) == kind]
        if len(of_theirs) == len(of_ours):
            for a, b in zip(of_theirs, of_ours, strict=True):
                if alike(a, b):
                    join(a, b)
    return found


def alike(theirs: Call, ours: Call) -> bool:
    """Whether the outputs can be the same array."""
    a, b = theirs.outputs, ours.outputs
    return len(a) == len(b) and all(activation_axes(x.shape, y.shape) for x, y in zip(a, b, strict=True))


def plain_kind(call: Call) -> str:
    """The class's name without what frameworks write differently."""
    return call.kind.lower().removesuffix("1d").removesuffix("2d").removesuffix("3d")


def last_name(path: str) -> str:
    return last(path).lower()
