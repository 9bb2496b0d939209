"""Writes down the calls of a forward pass as they begin and end, of either framework."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_ddpm.doctor.records import Call
from jax_ddpm.doctor.settings import plain_settings


class Recording:
    """The calls of one forward pass in the order in which they begin, and those that have not ended yet."""

    def __init__(self):
        self.calls: list[Call] = []
        self.open: list[Call] = []
        self.occurrences: dict[str, int] = {}

    def begin(
        self, path: str, module: Any, inputs: tuple, keywords: dict, parameters: Mapping[str, np.ndarray] | None = None
    ) -> Call:
        """A new call, inside the last one that is open."""
        call = Call(
            path,
            type(module).__name__,
            module,
            inputs,
            keywords,
            parameters=parameters or {},
            settings=plain_settings(module),
            number=len(self.calls),
            parent=self.open[-1].number if self.open else None,
            occurrence=self.occurrences.get(path, 0),
        )
        self.occurrences[path] = call.occurrence + 1
        if self.open:
            self.open[-1].is_leaf = False
        self.calls.append(call)
        self.open.append(call)
        return call

    def end(self) -> Call:
        """The last call that is open, which ends now."""
        return self.open.pop()
