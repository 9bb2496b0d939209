"""State dicts: NumPy arrays by their PyTorch names."""

from collections.abc import Mapping

import numpy as np

from jax_ddpm.spec.errors import UserError


def check_arrays(network: str, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, np.ndarray], dtype) -> None:
    """Raises UserError that lists every missing, unexpected, wrongly shaped and, in `dtype`, non-finite array.

    network: its name in the message; shapes: of its arrays, by name.
    """
    faults = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in values]
    faults += [f"unexpected: {name} {tuple(np.shape(values[name]))}" for name in values if name not in shapes]
    for name, shape in shapes.items():
        if name not in values:
            continue
        value = np.asarray(values[name])
        if value.shape != shape:
            faults.append(f"shape: {name} is {value.shape}, expected {shape}")
        elif not np.isfinite(value.astype(dtype)).all():
            faults.append(f"not finite: {name}")
    if faults:
        raise UserError(f"The weights do not fit {network}: " + "; ".join(faults) + ".")
