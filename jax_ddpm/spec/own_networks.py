"""Networks of the user's own: recognise them in a file of weights, and what to do where one is not registered."""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.infer_network import Recognised
from jax_ddpm.spec.network_config import BUILT_IN, NETWORKS, NetworkConfig
from jax_ddpm.spec.stored_array import Array

IMPORTED: list[str] = []
"""What --import has named in this process: files or modules whose code registers parts of the user's own."""
IMPORTS = "imports"  # entry of config.json: IMPORTED at the last start of the run. It is shown, and never executed.
MAX_CHANNELS = 4096  # of images
MAX_PREFIX = 200  # letters before a network's names
ShapesOf = Callable[[NetworkConfig, int], Mapping[str, tuple[int, ...]]]


def check_self_condition(network: Any, call: Callable) -> None:
    """Raise UserError unless the attribute self_condition of a user's network fits the arguments of its call."""
    parameters, name = inspect.signature(call).parameters, type(network).__name__
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if getattr(network, "self_condition", False) and not takes_any and "x_self_cond" not in parameters:
        raise UserError(
            f"{name} has self_condition = True, but its call takes no argument x_self_cond.\n"
            "Add the argument, or leave self_condition out."
        )
    if "x_self_cond" in parameters and not hasattr(network, "self_condition"):
        raise UserError(
            f"The call of {name} takes x_self_cond, but the module does not say whether the samplers should give it.\n"
            "Give the class the attribute self_condition = True, or False."
        )


def import_flags(names: Collection[str] | None = None) -> list[str]:
    """The flags that import modules again. names: default IMPORTED."""
    return [part for name in (IMPORTED if names is None else names) for part in ("--import", name)]


def recorded_imports(run: Path) -> list[str]:
    """What --import named at the last start of the run in a folder; nothing for other folders."""
    try:
        names = json.loads((run / "config.json").read_text(encoding="utf-8"))[IMPORTS]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def not_registered(name: str, source: str, imports: Collection[str] = ()) -> UserError:
    """The error for a network that is not known here. imports: what the run's training had as --import."""
    if imports:
        advice = (
            f"Do as its training did: {' '.join(import_flags(imports))} (in Python: import {', '.join(imports)}). "
            "That runs the file's code: read it first."
        )
    else:
        advice = "Give the file that registers it: --import FILE.py (in Python: import that file first)."
    return UserError(f"{source} has the network '{name[:60]}', which is not registered here.\n{advice}")


def check_registered(network: NetworkConfig) -> None:
    """Raise UserError unless `network` is the settings of a registered network."""
    if not isinstance(network, NetworkConfig):
        raise UserError(f"network = {network!r}: expected settings of a network, such as MyConfig(width=32).")
    if NETWORKS.get(network.name) is not type(network):
        name = type(network).__name__
        raise UserError(
            f"{name} is not registered: call jax_ddpm.register({name}, YourModule) first "
            f"(for PyTorch: torch_ref.register)."
        )
    network.check()


def candidates(settings: Mapping[str, Mapping[str, Any]], given: NetworkConfig | None) -> list[Recognised]:
    """The networks to look for by the names of their arrays: `given`, or else those that are registered.

    settings: by the network's name, settings that were given.
    """
    if given is not None:
        return [Recognised(type(given), 0, given.arguments)]
    registered = [kind for name, kind in NETWORKS.items() if name not in BUILT_IN]
    return [Recognised(kind, 0, {}) for kind in registered if fits(kind, settings.get(kind().name, {}))]


def fits(kind: type[NetworkConfig], settings: Mapping[str, Any]) -> bool:
    """Whether a network can have these settings."""
    try:
        Recognised(kind, 0, {}).with_settings(settings)
    except UserError:
        return False
    return True


def recognise_own(
    arrays: Mapping[str, Array], candidate: Recognised, settings: Mapping[str, Any], shapes_of: ShapesOf
) -> dict[str, Recognised]:
    """The prefixes under which a dictionary has at least half of a network's names, and its image channels there."""
    network = candidate.with_settings(settings)
    wanted = set(shapes_of(network, 1))
    prefixes = Counter(
        name[:start]
        for name in arrays
        for start in (0, *(number + 1 for number, letter in enumerate(name[:MAX_PREFIX]) if letter == "."))
        if name[start:] in wanted
    )
    return {
        prefix: Recognised(candidate.kind, image_channels(arrays, prefix, network, shapes_of), candidate.settings)
        for prefix, count in prefixes.most_common(8)
        if 2 * count >= len(wanted)
    }


def image_channels(arrays: Mapping[str, Array], prefix: str, network: NetworkConfig, shapes_of: ShapesOf) -> int:
    """The number of image channels, from the axes that differ between networks for one and for three channels."""
    one, three = shapes_of(network, 1), shapes_of(network, 3)
    votes: Counter[int] = Counter()
    for name, shape in one.items():
        array = arrays.get(prefix + name)
        if array is not None and array.ndim == len(shape) == len(three.get(name, ())):
            for size, small, large in zip(array.shape, shape, three[name], strict=True):
                channels = 1 + 2 * (size - small) / (large - small) if large != small else 0
                votes.update([int(channels)] if channels in range(1, MAX_CHANNELS) else [])
    return votes.most_common(1)[0][0] if votes else 1
