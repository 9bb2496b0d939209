"""Arrays on the devices of one process or of several.

With one process these functions are `jax.device_put`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def put(tree, shardings):
    """Put NumPy arrays on the devices of a mesh. Every process has the whole arrays, and puts its part of them.

    shardings: one for all arrays, or a tree of the same structure.
    """
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: _put_part(leaf, shardings), tree)
    return jax.tree.map(_put_part, tree, shardings)


def _put_part(array, sharding: NamedSharding) -> jax.Array:
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def columns_here(sharding: NamedSharding, shape: tuple[int, int]) -> slice:
    """The columns of an array (K, B), sharded by its columns, that are on the devices of this process."""
    indices = [index[1] for index in sharding.addressable_devices_indices_map(shape).values()]
    starts, stops = [index.start or 0 for index in indices], [index.stop or shape[1] for index in indices]
    return slice(min(starts), max(stops))


def here(tree):
    """The arrays, whole in this process. Those that are already so stay as they are.

    Of arrays that are replicated over several processes: those of one device. Arrays that are split over the devices of
    one process become replicated. Those that are split over several processes become arrays of NumPy, one after
    another, so that no device holds all of them; then all processes call this at the same time.
    """
    return jax.tree.map(_here, tree)


def _here(leaf):
    if isinstance(leaf, np.ndarray) or (leaf.is_fully_addressable and leaf.is_fully_replicated):
        return leaf
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    whole = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    if leaf.is_fully_addressable:
        return jax.device_put(leaf, whole)
    return np.asarray(jax.jit(_copy, out_shardings=whole)(leaf).addressable_data(0))


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def from_process_0(tree, shardings):
    """The arrays of process 0, bit for bit, on the devices of all processes.

    Every process calls this at the same time, with arrays of the same shapes and dtypes.

    shardings: one for all arrays, or a tree of the same structure; then the arrays are sent one after another, so that
    no device holds all of them.
    """
    if not isinstance(shardings, NamedSharding):
        return jax.tree.map(from_process_0, tree, shardings)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, tree)
    # Processes add up the arrays, and -0.0 + 0.0 is 0.0. Integers keep all bits.
    words = jax.tree.map(lambda leaf: np.asarray(leaf).view(WORDS[leaf.dtype.itemsize]), tree)
    words = multihost_utils.broadcast_one_to_all(words)
    tree = jax.tree.map(lambda word, dtype: np.asarray(word).view(dtype), words, dtypes)
    # Arrays that share memory with NumPy cannot be donated. The outputs of a jitted function can.
    return jax.jit(_copy, out_shardings=shardings)(put(tree, shardings))
