"""Networks whose products and convolutions are computed in TF32 on GPUs, and in three bfloat16 passes on TPUs."""

import functools

import jax
from flax import nnx

from jax_ddpm import ops


def in_tf32(network: nnx.Module) -> nnx.Module:
    """Make every call of the network compute its products in TF32, in place. Gradients follow the call.

    Its class becomes a subclass with the same name, so that copies and `nnx.split` keep it. Layers of Flax in a network
    of the user's own follow `jax_default_matmul_precision`, which is set for the call.
    """
    network.__class__ = class_in_tf32(type(network))
    return network


@functools.cache
def class_in_tf32(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The subclass of a network's class. Its attribute `as_written` is the class itself."""

    @functools.wraps(kind.__call__)
    def call(self, *arguments, **settings):
        with ops.tf32(), jax.default_matmul_precision("tensorfloat32"):
            return kind.__call__(self, *arguments, **settings)

    copied = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), {**copied, "__call__": call, "as_written": kind})


def is_in_tf32(network: nnx.Module) -> bool:
    return class_of(network) is not type(network)


def class_of(network: nnx.Module) -> type[nnx.Module]:
    """The class of a network as it was written."""
    return getattr(type(network), "as_written", type(network))
