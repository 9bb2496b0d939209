"""Arrays on the devices of one process or of several.

With one process these functions are `jax.device_put`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

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
    """Replicated arrays as arrays of one device of this process. With one process: the tree itself."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def from_process_0(tree, sharding: NamedSharding):
    """The arrays of process 0, bit for bit, replicated over the devices of all processes.

    Every process calls this at the same time, with arrays of the same shapes and dtypes.
    """
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, tree)
    # Processes add up the arrays, and -0.0 + 0.0 is 0.0. Integers keep all bits.
    words = jax.tree.map(lambda leaf: np.asarray(leaf).view(WORDS[leaf.dtype.itemsize]), tree)
    words = multihost_utils.broadcast_one_to_all(words)
    tree = jax.tree.map(lambda word, dtype: np.asarray(word).view(dtype), words, dtypes)
    # Arrays that share memory with NumPy cannot be donated. The outputs of a jitted function can.
    return jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=sharding)(put(tree, sharding))
