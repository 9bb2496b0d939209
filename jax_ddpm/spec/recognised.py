"""What names and shapes tell about a network, and how they are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jax_ddpm.spec.errors import require
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.network_base import NetworkConfig
from jax_ddpm.spec.stored_array import Array

MAX_SETTING = 2**20  # largest number accepted in a file's network settings
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Recognised:
    """A network, and those of its settings that names and shapes show."""

    kind: type[NetworkConfig]
    image_channels: int
    settings: dict[str, Any]
    label_rows: int | None = None
    """Rows of the label embedding, of which shapes do not show whether the last is the null label; None without one."""

    def completed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that shapes show, over those in `settings`, and the number of classes that follows from both."""
        completed = {**settings, **self.settings}
        if self.label_rows is not None and hasattr(self.kind, "num_classes"):
            completed["num_classes"] = self.label_rows - bool(completed.get("null_label", self.kind.null_label))
        return completed

    @property
    def config(self) -> NetworkConfig:
        """The network with its default for each setting that is not shown."""
        return self.kind(**self.completed({}))

    def with_settings(self, settings: Mapping[str, Any]) -> NetworkConfig:
        """The network with further settings, of which those that shapes show are ignored.

        Raises UserError for an unknown or mistyped setting, and for one that the network cannot have.
        """
        text = json.dumps(self.completed(settings), default=str)
        config = from_json(self.kind, text, "The network")
        config.check()
        check_size(config)
        return config

    @property
    def not_shown(self) -> list[str]:
        """Names of the settings that shapes do not show and that change what the network computes.

        Without class_embed_type: a network without a label embedding is taken to be one without labels.
        """
        known = ("name", "dropout", "num_classes", "class_embed_type", *self.settings)
        names = [field.name for field in fields(self.kind) if field.name not in known]
        has_classes = self.label_rows is not None or bool(self.settings.get("num_classes"))
        return [name for name in names if name != "null_label" or has_classes]


def check_size(network: NetworkConfig) -> None:
    """Raise UserError for settings so large that the network could fill the memory."""
    for name, value in network.arguments.items():
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int | float)]
        require(all(n <= MAX_SETTING for n in numbers), name, value, f"expected at most {MAX_SETTING}")


def shape_of(values: Arrays, name: str, ndim: int) -> tuple[int, ...] | None:
    """Shape of the array `name`, or None if there is none with `ndim` axes and at least one element."""
    value = values.get(name)
    return None if value is None or value.ndim != ndim or 0 in value.shape else value.shape


def count_numbered(values: Arrays, name: str, ndim: int) -> int:
    """Number of arrays called `name` with {} = 0, 1, 2, ... in a row."""
    number = 0
    while shape_of(values, name.format(number), ndim) is not None:
        number += 1
    return number
