"""Initial values of a network's parameters: PyTorch's defaults, each drawn from its own random address."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_ddpm import rng
from jax_ddpm.layers import BatchNorm, Embedding, GroupNorm, fan_in
from jax_ddpm.unets.attention import AttentionOutput, Frequencies, QueryKeyValue
from jax_ddpm.unets.layer_norm import LayerNorm
from jax_ddpm.weights.convert import torch_arrays
from jax_ddpm.weights.layouts import OURS


def initialise(network: nnx.Module, seed: int) -> None:
    """Fill a network with PyTorch's default initial values, in place.

    Each parameter is drawn from the address (PARAMS, crc32 of its PyTorch name). Kernels and their biases are
    kaiming-uniform with a = sqrt(5): uniform in [-1/sqrt(fan_in), 1/sqrt(fan_in)]. Norms have scale 1 and bias 0,
    and BatchNorm starts with the running mean 0 and variance 1. The packed projection of self-attention is
    xavier-uniform, its biases are 0. Label embeddings are standard normal. Random frequencies are drawn. All other
    arrays, such as buffers and those of Flax's own layers, keep their values.
    """
    for array in torch_arrays(network):
        key = rng.key(seed, rng.PARAMS, zlib.crc32(array.name.encode()))
        if isinstance(array.variable, Frequencies):
            value = (np.pi * box_muller(uniform(key, (2, *array.shape)))).astype(np.float32)
        elif not isinstance(array.layer, tuple(OURS)):
            continue
        elif isinstance(array.layer, Embedding):
            value = box_muller(uniform(key, (2, *array.shape))).astype(np.float32)
        elif isinstance(array.layer, GroupNorm | LayerNorm | BatchNorm):
            value = np.full(array.shape, 1 if array.name.endswith(("weight", "running_var")) else 0, np.float32)
        elif isinstance(array.layer, QueryKeyValue | AttentionOutput) and array.name.endswith("bias"):
            value = np.zeros(array.shape, np.float32)
        else:
            packed = isinstance(array.layer, QueryKeyValue)
            bound = np.float32(math.sqrt(6 / sum(array.shape)) if packed else 1 / math.sqrt(fan_in(array.layer)))
            value = (2 * uniform(key, array.shape) - 1) * bound
        array.write(value)


def box_muller(u: np.ndarray) -> np.ndarray:
    """Standard normal numbers from uniform numbers u (2, ...): Box & Muller 1958. NumPy, as in the PyTorch twin."""
    u = u.astype(np.float64)
    return np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])


def uniform(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """jax.random.uniform(key, shape), float32 in [0, 1), compiled for a few sizes instead of for every shape.

    Element i of a threefry draw depends only on i, not on the size. So a larger draw can be cut to the shape.
    """
    count = math.prod(shape)
    size = 4**6
    while size < count:
        size *= 4
    return np.asarray(jax.random.uniform(key, (size,), jnp.float32))[:count].reshape(shape)
