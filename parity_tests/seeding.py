"""How a fault is seeded into torch_ref."""

from unittest import mock


def swap(target, name, make):
    """Replace target.name by make(original)."""
    return lambda: mock.patch.object(target, name, make(getattr(target, name)))
