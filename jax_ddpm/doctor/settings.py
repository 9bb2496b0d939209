"""Plain attributes of a module of either framework."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def plain_settings(module: Any) -> Mapping[str, Any]:
    """Numbers, strings, dtypes, functions (by name), and tuples and dicts of them, among a module's attributes.

    Private ones and parameters are left out. Of torch modules `training` is among them.
    """
    values = {name: plain(value) for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in values.items() if value is not NotImplemented}


def plain(value: Any) -> Any:
    """The value as plain data, or NotImplemented."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        parts = [plain(part) for part in value]
        return NotImplemented if any(part is NotImplemented for part in parts) else tuple(parts)
    if isinstance(value, dict):
        parts = {str(name): plain(part) for name, part in value.items()}
        return NotImplemented if any(part is NotImplemented for part in parts.values()) else parts
    if isinstance(value, np.dtype | type) or type(value).__name__ == "dtype":
        return getattr(value, "__name__", str(value))
    if callable(value) and hasattr(value, "__name__") and not hasattr(value, "parameters"):
        return value.__name__
    return NotImplemented
