"""Initial values of a network's parameters: PyTorch's defaults, each drawn at an address of its own."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import rng
from jax_ddpm.layers import GroupNorm, fan_in
from jax_ddpm.unets.attention import AttentionOutput, Frequencies, QueryKeyValue
from jax_ddpm.unets.layer_norm import LayerNorm
from jax_ddpm.weights.convert import torch_arrays


def initialise(network: nnx.Module, seed: int) -> None:
    """Fill a network, in place, with PyTorch's default initial values, each drawn at (PARAMS, crc32 of its name there).

    Kernels: kaiming-uniform with a = sqrt(5), that is uniform within 1/sqrt(fan_in); so are their biases. Norms: one
    and zero. Self-attention: xavier-uniform over its packed projection, no biases. What belongs to no layer, such as
    buffers, keeps the value that the network was built with; random frequencies are drawn.
    """
    for entry in torch_arrays(network):
        key = rng.key(seed, rng.PARAMS, zlib.crc32(entry.name.encode()))
        if isinstance(entry.variable, Frequencies):
            value = (np.pi * box_muller(uniform(key, (2, *entry.shape)))).astype(np.float32)
        elif entry.layer is None:
            continue
        elif isinstance(entry.layer, GroupNorm | LayerNorm):
            value = np.full(entry.shape, 1 if entry.name.endswith("weight") else 0, np.float32)
        elif isinstance(entry.layer, QueryKeyValue | AttentionOutput) and entry.name.endswith("bias"):
            value = np.zeros(entry.shape, np.float32)
        else:
            packed = isinstance(entry.layer, QueryKeyValue)
            bound = np.float32(math.sqrt(6 / sum(entry.shape)) if packed else 1 / math.sqrt(fan_in(entry.layer)))
            value = (2 * uniform(key, entry.shape) - 1) * bound
        entry.variable.set_value(entry.from_torch(value))


def box_muller(u: np.ndarray) -> np.ndarray:
    """Standard normal numbers from uniform ones (2, ...), by Box & Muller 1958: with NumPy alike in both frameworks."""
    u = u.astype(np.float64)
    return np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])


def uniform(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """jax.random.uniform(key, shape), float32 in [0, 1), compiled for a few sizes instead of once for every shape.

    Draw i of a threefry key depends on i alone, not on how many are drawn, so a longer draw may be cut.
    """
    wanted = math.prod(shape)
    size = 4**6
    while size < wanted:
        size *= 4
    return np.asarray(jax.random.uniform(key, (size,), jnp.float32))[:wanted].reshape(shape)
