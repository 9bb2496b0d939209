"""State dicts: NumPy arrays by their PyTorch names."""

from collections.abc import Mapping

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import some


def check_arrays(network: str, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, np.ndarray], dtype) -> None:
    """Raise UserError for missing, unexpected and wrongly shaped arrays, and those not finite in `dtype`.

    The message lists the first of each kind, and how many more there are.

    network: name of the network, for the message. shapes: the shapes of its arrays, by name.
    """
    problems: dict[str, list[str]] = {
        "missing": [f"{name} {shape}" for name, shape in shapes.items() if name not in values],
        "unexpected": [f"{name} {tuple(np.shape(values[name]))}" for name in values if name not in shapes],
        "shape": [],
        "not finite": [],
    }
    for name, shape in shapes.items():
        if name not in values:
            continue
        value = np.asarray(values[name])
        if value.shape != shape:
            problems["shape"].append(f"{name} is {value.shape}, expected {shape}")
        elif not np.isfinite(value.astype(dtype)).all():
            problems["not finite"].append(name)
    listed = [f"{kind}: {some(names, 4, 100)}" for kind, names in problems.items() if names]
    if listed:
        raise UserError(f"The weights do not fit {network}: {'; '.join(listed)}.")
