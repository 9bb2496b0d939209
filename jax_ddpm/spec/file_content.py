"""The dictionaries of arrays in the content of a file, wherever they are in it."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_ddpm.spec.stored_array import Array, StoredArray
from jax_ddpm.spec.unpickle import Instance

Keys = tuple[str | int, ...]
MAX_NODES = 1_000_000  # of a file's content
MAX_VISITS = 4  # of the same object


@dataclass(frozen=True)
class Dictionary:
    """Arrays of a file by name: a dictionary, or the state dict of a pickled module."""

    keys: Keys
    """The keys that lead to it; () for the content of the file itself."""
    arrays: dict[str, Array]


@dataclass(frozen=True)
class ArrayList:
    """A list of arrays in a file."""

    keys: Keys
    arrays: list[Array]


@dataclass(frozen=True)
class FileContent:
    """All arrays of a file."""

    dictionaries: list[Dictionary]
    lists: list[ArrayList]

    @property
    def num_arrays(self) -> int:
        return sum(len(group.arrays) for group in (*self.dictionaries, *self.lists))


def place(keys: Keys) -> str:
    """Keys as Python writes them, such as ["ema"]["shadow_params"]."""
    texts = [repr(key) if isinstance(key, int) else f'"{key if len(key) <= 40 else key[:37] + "..."}"' for key in keys]
    return "".join(f"[{text}]" for text in (texts if len(texts) <= 6 else [*texts[:5], "..."]))


def is_array(value) -> bool:
    return isinstance(value, StoredArray | np.ndarray)


def search(content: Any) -> FileContent:
    """Every dictionary and list of arrays in what `read_torch` gives."""
    found = FileContent([], [ArrayList((), [content])] if is_array(content) else [])
    waiting: deque[tuple[Keys, Any]] = deque([((), content)])
    visits: Counter[int] = Counter()  # by id: files can refer to the same object under several keys, and to its parents
    while waiting:
        keys, value = waiting.popleft()
        if not isinstance(value, dict | list | tuple | Instance) or visits[id(value)] == MAX_VISITS:
            continue
        visits[id(value)] += 1
        if is_module(value):
            add_dictionary(found, keys, module_arrays(value))
        entries = dict(entries_of(value))
        arrays = {key: entry for key, entry in entries.items() if is_array(entry)}
        if isinstance(value, list | tuple):
            if arrays:
                found.lists.append(ArrayList(keys, list(arrays.values())))
        else:
            add_dictionary(found, keys, {str(key): entry for key, entry in arrays.items()})
        if len(keys) < 32:
            waiting.extend(((*keys, key), entry) for key, entry in entries.items())
        if len(visits) > MAX_NODES:
            raise ValueError("more content than can be searched")
    return found


def add_dictionary(found: FileContent, keys: Keys, arrays: dict[str, Array]) -> None:
    if arrays:
        found.dictionaries.append(Dictionary(keys, arrays))


def entries_of(value: dict | list | tuple | Instance) -> Iterator[tuple[str | int, Any]]:
    """Keys and values of a dictionary, numbers and elements of a list, names and attributes of an object."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield key if isinstance(key, int) else str(key), entry
    elif isinstance(value, list | tuple):
        yield from ((number, entry) for number, entry in enumerate(value) if not isinstance(entry, str | float | int))
    else:
        yield from enumerate(value.arguments)
        yield from enumerate(value.elements)
        yield from entries_of(value.items)
        for state in value.state if isinstance(value.state, tuple) else (value.state,):
            if isinstance(state, dict):
                hidden = ("_parameters", "_buffers", "_modules") if is_module(value) else ()
                yield from ((key, entry) for key, entry in entries_of(state) if key not in hidden)


def is_module(value) -> bool:
    """Whether the object was an nn.Module."""
    state = value.state if isinstance(value, Instance) else None
    return isinstance(state, dict) and all(isinstance(state.get(name), dict) for name in ("_parameters", "_modules"))


def module_arrays(module: Instance) -> dict[str, Array]:
    """The state dict of a pickled nn.Module, without its class."""
    arrays: dict[str, Array] = {}
    waiting: list[tuple[str, Instance]] = [("", module)]
    for _ in range(MAX_NODES // 10):
        if not waiting:
            return arrays
        prefix, part = waiting.pop()
        temporary = part.state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            entries = part.state.get(kind)
            for name, entry in entries.items() if isinstance(entries, dict) else ():
                if is_array(entry) and name not in temporary:
                    arrays[f"{prefix}{name}"] = entry
        children = [(f"{prefix}{name}.", child) for name, child in part.state["_modules"].items() if is_module(child)]
        if len(prefix) < 1000:
            waiting += reversed(children)
    raise ValueError("more modules than can be searched")
