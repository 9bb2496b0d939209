"""Networks that a test registers are gone after it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax_ddpm.unets
import torch_ref.unets
from jax_ddpm.spec.network_config import NETWORKS
from jax_ddpm.spec.own_networks import IMPORTED
from jax_ddpm.spec.presets import PRESETS

FILES = ("own_unet.py", "my_unet.py", "their_unet.py")  # that tests give to --import
REGISTRIES = (
    *(NETWORKS, PRESETS, jax_ddpm.unets.NETWORK_CLASSES, jax_ddpm.unets.REGISTERED_TORCH_NAMES),
    torch_ref.unets.NETWORK_CLASSES,
)


@contextmanager
def restored() -> Iterator[None]:
    """Context manager: afterwards the registries have what they had before."""
    before = [dict(registry) for registry in REGISTRIES]
    imported, modules, path = list(IMPORTED), set(sys.modules), list(sys.path)
    try:
        yield
    finally:
        IMPORTED[:], sys.path[:] = imported, path
        for name in {Path(name).stem for name in FILES} & (set(sys.modules) - modules):
            del sys.modules[name]
        for registry, entries in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(entries)
