"""Where the arrays of the training state lie: whole on every device, or with --fsdp a part of each on every device.

The parts are those of ZeRO-3 (Rajbhandari et al. 2020): parameters, averages and the optimiser's moments. A training
step gathers the parameters, computes as without --fsdp, and updates on each device the part that it holds. JAX's
shardings say which part that is; XLA moves the numbers.
"""

import math
from dataclasses import replace

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm.spec.errors import users_words
from jax_ddpm.training.state import TrainState

MIN_SHARDED_ELEMENTS = 1024  # a smaller array is whole on every device
PARTS = ("weights", "power_ema", "state")
"""What process 0 asks for: weights and buffers, the power-function averages, or the whole state."""


def is_on(fsdp: bool, mesh: Mesh | None) -> bool:
    """Whether the state is split over the devices of a mesh."""
    return fsdp and mesh is not None and mesh.size > 1


def split_axis(shape: tuple[int, ...], num_devices: int) -> int | None:
    """The axis along which an array is split: the longest that `num_devices` divides, the last one of equals.

    None for an array that is whole on every device: a small one, or one without such an axis.
    """
    axes = [axis for axis, length in enumerate(shape) if length % num_devices == 0]
    if not axes or math.prod(shape) < MIN_SHARDED_ELEMENTS:
        return None
    return max(axes, key=lambda axis: (shape[axis], axis))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_shardings(tree, mesh: Mesh):
    """The shardings of arrays that are split over all devices of a mesh, by `split_axis`."""

    def sharding(leaf) -> NamedSharding:
        axis = split_axis(leaf.shape, mesh.size)
        return replicated(mesh) if axis is None else NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

    return jax.tree.map(sharding, tree)


def state_shardings(state: TrainState, mesh: Mesh, fsdp: bool) -> TrainState | NamedSharding:
    """A sharding for each array of a training state, or one for all if it is whole on every device.

    Buffers always are.
    """
    if not is_on(fsdp, mesh):
        return replicated(mesh)
    return replace(split_shardings(state, mesh), buffers=jax.tree.map(lambda _: replicated(mesh), state.buffers))


def describe(state: TrainState, mesh: Mesh) -> str:
    """A line about --fsdp. state: arrays or shapes."""
    if mesh.size == 1:
        return users_words("--fsdp has no effect: there is one device.")
    total, here = bytes_of(state), bytes_of(state, state_shardings(state, mesh, True))
    return f"Training state: {here / 1e6:,.1f} MB on each device, of {total / 1e6:,.1f} MB"


def bytes_of(tree, shardings=None) -> int:
    """Bytes of all arrays; with a tree of shardings: on one device."""
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.shape for leaf in leaves]
    if shardings is not None:
        pairs = zip(jax.tree.leaves(shardings), shapes, strict=True)
        shapes = [sharding.shard_shape(shape) for sharding, shape in pairs]
    return sum(leaf.dtype.itemsize * math.prod(shape) for leaf, shape in zip(leaves, shapes, strict=True))


def constrain_split(tree, mesh: Mesh):
    """Inside a jitted function: the arrays, split over the devices."""
    return lax.with_sharding_constraint(tree, split_shardings(tree, mesh))


def constrain_whole(tree, mesh: Mesh):
    """Inside a jitted function: the arrays, whole on every device."""
    return lax.with_sharding_constraint(tree, replicated(mesh))


def part_of_state(state: TrainState, part: str):
    """The arrays of one of `PARTS`, still split."""
    if part == "state":
        return state
    return state.weights if part == "weights" else state.power_ema, state.buffers
