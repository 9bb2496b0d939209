"""Choose among the weights that a file holds, say what was taken, and refuse what cannot be read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.file_content import FileContent, place
from jax_ddpm.spec.find_weights import Found, ShapesOf, under
from jax_ddpm.spec.nearest_network import OWN_NETWORK, nearest_by_names, of_found
from jax_ddpm.spec.network_config import BUILT_IN, NETWORKS, NetworkConfig
from jax_ddpm.spec.read_content import read_arrays
from jax_ddpm.spec.text import printable, some
from jax_ddpm.spec.types import Weights


def choose(
    path: Path,
    content: FileContent,
    found: list[Found],
    weights: Weights | None,
    shapes_of: ShapesOf | None,
    given: NetworkConfig | None = None,
) -> Found:
    """The weights to take: averaged ones where there are some, unless `weights` says otherwise.

    given: the only network that was looked for.

    Raises UserError if there are none, or several with different values.
    """
    complete = [each for each in found if each.is_complete]
    averages, raws = ([each for each in complete if each.is_ema is kind] for kind in (True, False))
    chosen = averages or raws if weights is None else averages if weights == "ema" else raws
    if not complete:
        raise refusal(path, content, found, shapes_of, given)
    if not chosen:
        wanted, other = ("EMA", "raw") if weights == "ema" else ("raw", "EMA")
        raise UserError(
            f"{path} holds no complete {wanted} weights, only {other} weights ({complete[0].place}).\n"
            f"Leave out --weights {weights} (in Python: weights={weights!r})."
        )
    different = [each for each in chosen[1:] if not are_equal(path, chosen[0], each)]
    if different:
        places = some([each.place for each in (chosen[0], *different)])
        raise UserError(
            f"{path} holds {1 + len(different)} complete networks with different values: {places}.\n"
            "Save the one to load in a file of its own: torch.save(STATE_DICT, 'one.pt')"
        )
    return chosen[0]


def are_equal(path: Path, a: Found, b: Found) -> bool:
    """Whether two weights in a file are the same network with the same values. Raises UserError for a damaged file."""
    if a.network != b.network or a.arrays.keys() != b.arrays.keys():
        return False
    names = [name for name in a.arrays if a.arrays[name] is not b.arrays[name]]
    return all(
        np.array_equal(*(read_arrays({name: each.arrays[name]}, path)[name] for each in (a, b))) for name in names
    )


def describe_choice(
    path: Path,
    content: FileContent,
    found: list[Found],
    chosen: Found,
    is_ema: bool,
    others: Sequence[str],
) -> str:
    """One line: what was taken from the file, and what was left out.

    is_ema: whether the file's folder says that the weights are an average. others: other weights in the folder.
    """
    has_average = bool(others) or any(each.is_ema for each in found)
    kind = "EMA weights" if chosen.is_ema or is_ema else "raw weights" if has_average else "weights"
    left_out = list(others)
    left_out += [
        f"{each.place} ({'EMA' if each.is_ema else 'raw'} weights{'' if each.is_complete else ', incomplete'})"
        for each in found
        if each is not chosen
    ]
    taken_from = {each.keys for each in found}
    left_out += [
        f"{place(group.keys) or 'the file itself'} ({len(group.arrays)} arrays)"
        for group in (*content.dictionaries, *content.lists)
        if group.keys not in taken_from
    ]
    left_out += leftovers(content, found, chosen)
    ending = f" Left out: {some(left_out, 5, 80)}." if left_out else ""
    return printable(f"Took the {kind} in {path}{place(chosen.keys)}{under(chosen.prefix)}.{ending}")


def leftovers(content: FileContent, found: list[Found], chosen: Found) -> list[str]:
    """Names of arrays in the chosen dictionary that belong to no network; those with a prefix by their first part."""
    here = next((group for group in content.dictionaries if group.keys == chosen.keys), None)
    networks = {name for each in found if each.keys == chosen.keys for name in each.names.values()}
    names = [name for name in (here.arrays if here else ()) if name not in networks]
    return list(dict.fromkeys(name if "." not in name else f"{name.partition('.')[0]}.*" for name in names))


def refusal(
    path: Path, content: FileContent, found: list[Found], shapes_of: ShapesOf | None, given: NetworkConfig | None
) -> UserError:
    """Why no weights could be taken: what the file holds, the network it is nearest to, and what differs."""
    if not content.num_arrays:
        return UserError(f"{path} holds no arrays of numbers: expected the weights of a network.")
    what = f"that is known here ({', '.join(NETWORKS)})" if given is None else f"'{given.name}' with the given settings"
    groups = sorted((*content.dictionaries, *content.lists), key=lambda group: -len(group.arrays))
    held = some([f"{place(group.keys) or 'the file itself'} ({len(group.arrays)} arrays)" for group in groups], 4)
    lines = [f"{path} holds no complete network {what}.", f"It holds: {held}."]
    advice = "If the network is one of these, save its weights alone: torch.save(model.state_dict(), 'weights.pt')"
    advice = f"{advice}\n{OWN_NETWORK}" if given is None else advice
    conflicts = [each for each in found if each.conflict is not None]
    nearest = min(found, key=lambda each: len(each.missing) + len(each.unexpected) + len(each.misshapen), default=None)
    if conflicts:
        lines.append(f"Nearest: {conflicts[0].network.name} in {conflicts[0].place}. {conflicts[0].conflict}")
        advice = (
            "Settings that shapes do not show can be given: "
            "--network-setting NAME=VALUE (in Python: network_settings={'NAME': VALUE})"
        )
    elif nearest is not None:
        is_own = nearest.network.name not in BUILT_IN
        shown = nearest.network.arguments if is_own else nearest.recognised.settings
        settings = ", ".join(f"{name} {value}" for name, value in shown.items())
        name, common = nearest.network.name, of_found(nearest)
        lines.append(f"Nearest: {name} in {nearest.place} ({settings[:120]}): {common} are as in {name}.")
        for title, problems in (
            ("Missing", nearest.missing),
            ("Unexpected", nearest.unexpected),
            ("Other shapes", nearest.misshapen),
        ):
            if problems:
                lines.append(f"{title}: {some(problems)}.")
        if is_own:
            advice = "Give its settings: --network-setting NAME=VALUE (in Python: network=MyConfig(NAME=VALUE))"
    else:
        configs = [kind() for kind in NETWORKS.values()] if given is None else [given]
        lines += nearest_by_names(content.dictionaries, shapes_of, configs) if shapes_of else []
    return UserError("\n".join([*lines, advice]), max_lines=10)
