"""The precision of all products and convolutions of a network, which holds for its calls and their gradients."""

import functools
from contextlib import nullcontext
from typing import Literal

import jax
from flax import nnx

from jax_ddpm import ops


def in_tf32(network: nnx.Module) -> nnx.Module:
    """Make every call of the network compute its products in TF32 on GPUs, in three bfloat16 passes on TPUs. In place.

    Its class becomes a subclass with the same name, so that copies and `nnx.split` keep it. Layers of Flax in a network
    of the user's own follow `jax_default_matmul_precision`, which is set for the call.
    """
    network.__class__ = class_in(class_of(network), "tensorfloat32")
    return network


def in_full_float32(network: nnx.Module) -> nnx.Module:
    """Make every call compute products of float32 in float32, in place, as `in_tf32` does for TF32.

    Layers of Flax would otherwise compute them in TF32 on GPUs and in bfloat16 on TPUs.
    """
    network.__class__ = class_in(class_of(network), "highest")
    return network


@functools.cache
def class_in(kind: type[nnx.Module], precision: Literal["tensorfloat32", "highest"]) -> type[nnx.Module]:
    """The subclass of a network's class. Its attribute `as_written` is the class itself."""

    @functools.wraps(kind.__call__)
    def call(self, *arguments, **settings):
        with ops.tf32() if precision == "tensorfloat32" else nullcontext(), jax.default_matmul_precision(precision):
            return kind.__call__(self, *arguments, **settings)

    copied = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    added = {"__call__": call, "as_written": kind, "matmul_precision": precision}
    return type(kind.__name__, (kind,), copied | added)


def is_in_tf32(network: nnx.Module) -> bool:
    return getattr(type(network), "matmul_precision", None) == "tensorfloat32"


def class_of(network: nnx.Module) -> type[nnx.Module]:
    """The class of a network as it was written."""
    return getattr(type(network), "as_written", type(network))
