"""The layout of somebody's checkpoint, kept so that converted weights can be written back into it."""

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.text import one_line, some
from jax_ddpm.spec.types import StateDict

MAX_KEPT = 2**16  # elements of arrays beside the network, such as the tables of a diffusion
MAX_KEYS = 32  # that lead to the weights
MAX_INDEX = 100  # of a list that holds them


@dataclass(frozen=True)
class KeptArray:
    """An array of the checkpoint that the network does not have."""

    __pydantic_config__ = STRICT

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: str
    """The bytes, in base64."""


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint has the weights of the network, and under which names."""

    __pydantic_config__ = STRICT

    keys: tuple[str | int, ...] = ()
    """Keys that lead to the state dict, such as ("model",); () if the checkpoint is the state dict itself."""
    prefix: str = ""
    """What its names start with."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(name in the network, name in the checkpoint), where that is not the prefix and the name."""
    kept: tuple[KeptArray, ...] = ()
    """Further arrays of the state dict."""
    left_out: tuple[str, ...] = ()
    """Names of further arrays that are too large to keep."""

    def describe(self) -> str:
        """One line for a file that was written in this layout."""
        place = "".join(f"[{key!r}]" for key in self.keys)
        text = f"with the state dict at {place}" if place else "a state dict"
        text += f" and the prefix {self.prefix}" if self.prefix else ""
        text += f"; with {len(self.kept)} further arrays of the original" if self.kept else ""
        missing = f"; {len(self.left_out)} large arrays of the original are missing: {some(self.left_out)}"
        return text + (missing if self.left_out else "")


def make_layout(
    keys: tuple[str | int, ...],
    names: Mapping[str, str],
    others: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
) -> Layout:
    """The layout of a checkpoint.

    Args:
        keys: keys that lead to the state dict.
        names: from the network's names to the names in the state dict.
        others: names and shapes of the other arrays of the state dict. The smallest are kept, up to MAX_KEPT elements.
        read: gives the values of one of these.
    """
    prefixes = [theirs.removesuffix(ours) for ours, theirs in names.items() if theirs.endswith(ours)]
    prefix = max(set(prefixes), key=prefixes.count, default="")
    renamed = tuple((ours, theirs) for ours, theirs in names.items() if theirs != prefix + ours)
    kept, left_out, size = [], [], 0
    for name, shape in sorted(others.items(), key=lambda item: math.prod(item[1])):
        size += math.prod(shape)
        if size > MAX_KEPT:
            left_out.append(name)
            continue
        value = read(name)
        kept.append(KeptArray(name, value.dtype.str, shape, base64.b64encode(value.tobytes()).decode()))
    return Layout(keys, prefix, renamed, tuple(kept), tuple(left_out))


def apply_layout(layout: Layout, values: StateDict) -> StateDict:
    """The state dict of a network with the names of the checkpoint, and the arrays that were kept.

    Raises UserError for a layout that cannot be that of a checkpoint.
    """
    renamed = dict(layout.renamed)
    state_dict = {renamed.get(name, layout.prefix + name): value for name, value in values.items()}
    try:
        for array in layout.kept:
            data = base64.b64decode(array.data, validate=True)
            state_dict[array.name] = np.frombuffer(data, np.dtype(array.dtype)).reshape(array.shape)
    except (ValueError, TypeError) as error:
        raise UserError(f"The layout in the metadata is damaged ({one_line(error)}): add --layout plain.") from None
    return state_dict


def wrap(keys: tuple[str | int, ...], content: Any) -> Any:
    """`content` in dictionaries and lists, so that these keys lead to it. Other elements of a list are None.

    Raises UserError for keys that no checkpoint has.
    """
    if len(keys) > MAX_KEYS or any(isinstance(key, int) and not 0 <= key <= MAX_INDEX for key in keys):
        raise UserError("The layout in the metadata has too many keys or too large an index: add --layout plain.")
    for key in reversed(keys):
        content = {key: content} if isinstance(key, str) else [None] * key + [content]
    return content
