"""Weights of the golden networks: the rule of the golden numbers' description."""

import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def golden_state_dict(keys, computed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float32 arrays for "name (d0, d1, ...)" lines; `computed` holds what a network computes for itself."""
    return {name: computed[name] if name in computed else rule(name, shape) for name, shape in map(parse, keys)}


def parse(line: str) -> tuple[str, tuple[int, ...]]:
    name, _, dimensions = line.partition(" ")
    return name, tuple(int(d) for d in dimensions.strip("(,)").split(",") if d.strip())


def rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    r = np.random.default_rng(zlib.crc32(name.encode()) + 7).standard_normal(shape)
    if name.endswith("freqs"):
        value = r * np.pi
    elif name.endswith(("bias", "running_mean")):
        value = 0.1 * r
    elif len(shape) == 1 or ".ln." in name:
        value = 1 + 0.1 * r
    else:
        value = r / np.sqrt(np.prod(shape[1:]))
    return value.astype(np.float32)
