"""Networks that a test registers are gone after it."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax_ddpm.unets
import torch_ref.unets
from jax_ddpm.spec.network_config import NETWORKS
from jax_ddpm.spec.presets import PRESETS

REGISTRIES = (
    *(NETWORKS, PRESETS, jax_ddpm.unets.NETWORK_CLASSES, jax_ddpm.unets.REGISTERED_TORCH_NAMES),
    torch_ref.unets.NETWORK_CLASSES,
)


@contextmanager
def restored() -> Iterator[None]:
    """Context manager: afterwards the registries have what they had before."""
    before = [dict(registry) for registry in REGISTRIES]
    try:
        yield
    finally:
        for registry, entries in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(entries)
