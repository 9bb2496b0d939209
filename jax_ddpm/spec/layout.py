"""The layout of somebody's checkpoint, kept so that converted weights can be written back into it."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.text import one_line, some
from jax_ddpm.spec.types import StateDict

Keys = tuple[str | int, ...]
MAX_KEYS = 32  # that lead to a state dict
MAX_INDEX = 100_000  # of a list


@dataclass(frozen=True)
class Names:
    """The names of the network's arrays in a state dict."""

    __pydantic_config__ = STRICT

    prefix: str = ""
    """What they start with."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(name in the network, name in the state dict), where that is not the prefix and the name."""
    absent: tuple[str, ...] = ()
    """Names in the network of arrays that are not there."""

    def apply(self, values: StateDict) -> StateDict:
        """The arrays of the network with the names of the state dict."""
        renamed, absent = dict(self.renamed), set(self.absent)
        return {renamed.get(name, self.prefix + name): value for name, value in values.items() if name not in absent}


@dataclass(frozen=True)
class KeptArray:
    """An array of a state dict that the network does not have."""

    __pydantic_config__ = STRICT

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: str
    """The bytes, in base64."""

    @classmethod
    def of(cls, name: str, value: np.ndarray) -> "KeptArray":
        return cls(name, value.dtype.str, value.shape, base64.b64encode(value.tobytes()).decode())

    def value(self) -> np.ndarray:
        """Raises ValueError or TypeError for a field that does not fit the others."""
        return np.frombuffer(base64.b64decode(self.data, validate=True), np.dtype(self.dtype)).reshape(self.shape)


@dataclass(frozen=True)
class Place:
    """A dictionary or list of a checkpoint that has the weights of the network, perhaps more than once."""

    __pydantic_config__ = STRICT

    keys: Keys
    """Keys that lead to it, such as ("model",); () for the checkpoint itself."""
    names: tuple[Names, ...]
    """One for each set of the weights, such as raw ones and their average."""
    is_list: bool = False
    """Whether it is a list. Then the names are its indices."""
    kept: tuple[KeptArray, ...] = ()
    """Its other arrays."""
    left_out: tuple[str, ...] = ()
    """Names of its other arrays that are too large to keep."""


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint has the weights of a network, and under which names."""

    __pydantic_config__ = STRICT

    places: tuple[Place, ...]

    def describe(self) -> str:
        """One line about a file that was written in this layout."""
        at = [
            f"the state dict itself{under(place)}" if not place.keys else f"{as_python(place.keys)}{under(place)}"
            for place in self.places
        ]
        kept = sum(len(place.kept) for place in self.places)
        left_out = [name for place in self.places for name in place.left_out]
        text = f"in the layout of the original: weights at {some(at, 4, 80)}"
        text += f"; {kept} other arrays of the original" if kept else ""
        return text + (f"; without {len(left_out)} large arrays of the original: {some(left_out)}" if left_out else "")


def under(place: Place) -> str:
    prefixes = [names.prefix for names in place.names if names.prefix]
    return f" under {' and '.join(prefixes)}" if prefixes else ""


def as_python(keys: Keys) -> str:
    """Keys as Python writes them, such as ["model"]."""
    return "".join(f"[{key!r}]" for key in keys)


def make_names(theirs: Mapping[str, str], network: Mapping[str, Any]) -> Names:
    """The names in a state dict, from the map of the network's names to them, and all names of the network."""
    prefixes = [name.removesuffix(ours) for ours, name in theirs.items() if name.endswith(ours)]
    prefix = max(set(prefixes), key=prefixes.count, default="")
    renamed = tuple((ours, name) for ours, name in theirs.items() if name != prefix + ours)
    return Names(prefix, renamed, tuple(name for name in network if name not in theirs))


def apply_layout(layout: Layout, values: StateDict) -> Any:
    """The content of a checkpoint with this layout: dictionaries, lists, and these weights in every place.

    Raises UserError for a layout that cannot be that of a checkpoint.
    """
    content: dict = {}
    try:
        for place in layout.places:
            if len(place.keys) > MAX_KEYS:
                raise ValueError("too many keys")
            here = content
            for key in place.keys:
                here = here.setdefault(key, {})
            here.update({array.name: array.value() for array in place.kept})
            for names in place.names:
                arrays = names.apply(values)
                here.update({int(name): array for name, array in arrays.items()} if place.is_list else arrays)
        return with_lists(content)
    except (ValueError, TypeError, AttributeError) as error:
        advice = "add --layout plain (in Python: layout='plain')"
        raise UserError(f"The layout in the metadata is damaged ({one_line(error)}): {advice}.") from None


def with_lists(content: Any) -> Any:
    """The content with lists in place of dictionaries whose keys are indices. Elements that are not there are None."""
    if not isinstance(content, dict):
        return content
    content = {key: with_lists(value) for key, value in content.items()}
    if not content or not all(isinstance(key, int) for key in content):
        return content
    if min(content) < 0 or max(content) > MAX_INDEX:
        raise ValueError(f"an index of {max(content)}")
    return [content.get(index) for index in range(max(content) + 1)]
