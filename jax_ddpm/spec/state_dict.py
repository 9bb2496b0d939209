"""State dicts: NumPy arrays by their PyTorch names."""

from collections.abc import Mapping

import numpy as np

from jax_ddpm.spec.errors import UserError


def check_arrays(network: str, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, np.ndarray], dtype) -> None:
    """Raise UserError that lists every missing, unexpected or wrongly shaped array, and those not finite in `dtype`.

    network: name of the network, for the message. shapes: the shapes of its arrays, by name.
    """
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in values]
    problems += [f"unexpected: {name} {tuple(np.shape(values[name]))}" for name in values if name not in shapes]
    for name, shape in shapes.items():
        if name not in values:
            continue
        value = np.asarray(values[name])
        if value.shape != shape:
            problems.append(f"shape: {name} is {value.shape}, expected {shape}")
        elif not np.isfinite(value.astype(dtype)).all():
            problems.append(f"not finite: {name}")
    if problems:
        raise UserError(f"The weights do not fit {network}: " + "; ".join(problems) + ".")
