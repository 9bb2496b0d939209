"""Random numbers by address, (seed, purpose, ...): `jax_ddpm.rng` and what it uses of jax.random, in PyTorch.

The generator is jax.random's threefry2x32 (partitionable). Bits, uniforms and integers equal JAX's to the last bit,
normals to a few ulp. PyTorch has little arithmetic for unsigned integers, so NumPy draws, and the draws are CPU
tensors. A key is a uint32 array (2,). Several keys at once are (*n, 2), and their draws (*n, *shape).
"""

import math

import numpy as np
import torch

from jax_ddpm.spec.inputs import check_seed

PARAMS = 0  # (PARAMS, crc32 of the parameter's PyTorch name)
TIMESTEPS = 1  # (TIMESTEPS, step): a (B,) draw of t
NOISE = 2  # (NOISE, step): a (B, H, W, C) draw of eps
DROPOUT = 3  # (DROPOUT, step, number of the dropout call, index in the batch): an (H, W, C) draw
SAMPLING = 4  # (SAMPLING, image index, t): an (H, W, C) draw. x_T uses t = T. Inpainting uses t + v (T + 1) at visit v
FLIP = 5  # (FLIP, step): a (B,) draw of coin flips
VALIDATION = 6  # (VALIDATION, TIMESTEPS or NOISE, batch number): fixed draws for the validation loss
KNOWN = 7  # (KNOWN, image index, t + v (T + 1)): an (H, W, C) draw, noise of the known pixels after visit v of t
JUMP = 8  # (JUMP, image index, t + v (T + 1)): an (H, W, C) draw, noise of the jump up after visit v of t
LIKELIHOOD = 9  # (LIKELIHOOD, image index, t): an (H, W, C) draw of eps. t = T: a (K,) draw of t. t = T + 1: of signs
LABEL_DROPOUT = 10  # (LABEL_DROPOUT, step): a (B,) draw of which labels become the null label
SELF_CONDITION = 11  # (SELF_CONDITION, step): whether the network is given the x_0 that it predicts in a first pass

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # Salmon et al. 2011, table 2, N = 2, W = 32

# Giles 2010, single precision: the coefficients of erf_inv(x) / x for w < 5, and for w >= 5; the highest power first.
ERF_INV = np.array(
    [
        (2.81022636e-08, -0.000200214257),
        (3.43273939e-07, 0.000100950558),
        (-3.5233877e-06, 0.00134934322),
        (-4.39150654e-06, -0.00367342844),
        (0.00021858087, 0.00573950773),
        (-0.00125372503, -0.0076224613),
        (-0.00417768164, 0.00943887047),
        (0.246640727, 1.00167406),
        (1.50140941, 2.83297682),
    ],
    np.float32,
)


def key(seed: int, purpose: int, *address) -> np.ndarray:
    """The key at an address. `address` holds integers (or arrays of them) in [0, 2^32), folded in one after another.

    Raises UserError for a seed outside [0, 2^32).
    """
    k = np.array([0, check_seed(seed)], np.uint32)
    for number in (purpose, *address):
        k = fold_in(k, number)
    return k


def timesteps(k: np.ndarray, batch_size: int, num_timesteps: int) -> torch.Tensor:
    """Uniform t in [0, T): int64 (B,)."""
    return randint(k, (batch_size,), 0, num_timesteps).long()


def normal(k: np.ndarray, shape: tuple[int, ...], dtype=torch.float32) -> torch.Tensor:
    """Standard normal numbers, float32 or float64. Images are channels last.

    They equal those of jax.random.normal up to 1e-6 in float32 and 1e-13 in float64.
    """
    u = uniform(k, shape, dtype).numpy()
    minval = np.nextafter(u.dtype.type(-1), u.dtype.type(0))
    x = np.maximum(minval, 2 * u + minval)  # in (-1, 1)
    return torch.from_numpy(np.asarray(np.sqrt(u.dtype.type(2)) * erf_inv(x)))


# Functions of jax.random, public or internal, under the same names.


def threefry2x32(k: np.ndarray, x_0: np.ndarray, x_1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds, Salmon et al. 2011, section 3.3.

    k: keys (*n, 2). x_0, x_1: the two words of each counter, (m,) or (*n, m). Returns two words per counter, (*n, m).
    All are uint32.
    """
    k_0, k_1 = k[..., 0, None], k[..., 1, None]
    schedule = (k_0, k_1, k_0 ^ k_1 ^ np.uint32(0x1BD11BDA))
    x_0, x_1 = x_0 + k_0, x_1 + k_1
    high = np.empty_like(x_1)
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x_0 += x_1
            np.right_shift(x_1, np.uint32(32 - rotation), out=high)
            x_1 <<= np.uint32(rotation)
            x_1 |= high
            x_1 ^= x_0
        x_0 += schedule[(group + 1) % 3]
        x_1 += schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x_0, x_1


def fold_in(k: np.ndarray, data) -> np.ndarray:
    """jax.random.fold_in; `data`, an integer or an array of them, broadcasts against the keys: (*n, 2)."""
    data = np.asarray(data).astype(np.uint32)[..., None]
    return np.concatenate(threefry2x32(k, np.zeros_like(data), data), axis=-1)


def split(k: np.ndarray, num: int = 2) -> np.ndarray:
    """jax.random.split: (*n, num, 2)."""
    counter = np.arange(num, dtype=np.uint32)
    return np.stack(threefry2x32(k, np.zeros_like(counter), counter), axis=-1)


def bits(k: np.ndarray, shape: tuple[int, ...], dtype=np.uint32) -> np.ndarray:
    """jax.random.bits: uint32 or uint64, fewer than 2^32 of them."""
    counter = np.arange(math.prod(shape), dtype=np.uint32)
    x_0, x_1 = threefry2x32(k, np.zeros_like(counter), counter)
    words = x_0 ^ x_1 if dtype == np.uint32 else x_0.astype(np.uint64) << np.uint64(32) | x_1
    return words.reshape((*k.shape[:-1], *shape))


def uniform(k: np.ndarray, shape: tuple[int, ...], dtype=torch.float32) -> torch.Tensor:
    """jax.random.uniform, in [0, 1): float32 from 32 random bits each, or float64 from 64."""
    if dtype == torch.float64:
        mantissa = bits(k, shape, np.uint64) >> np.uint64(12) | np.uint64(0x3FF0000000000000)
        return torch.from_numpy(np.asarray(mantissa.view(np.float64) - 1))
    mantissa = bits(k, shape) >> np.uint32(9) | np.uint32(0x3F800000)  # as a float in [1, 2)
    return torch.from_numpy(np.asarray(mantissa.view(np.float32) - np.float32(1)))


def randint(k: np.ndarray, shape: tuple[int, ...], minval: int, maxval: int) -> torch.Tensor:
    """jax.random.randint with dtype int32: integers in [minval, maxval). If this range is empty: minval."""
    higher, lower = np.moveaxis(bits(split(k), (math.prod(shape),)), -2, 0)
    span = max(maxval - minval, 1)
    # This is 2^32 mod span if span <= 2^16. For larger spans the square overflows, as in JAX.
    multiplier = np.uint32((2**16 % span) ** 2 % 2**32 % span)
    span = np.uint32(span)
    offset = (higher % span * multiplier + lower % span) % span + np.uint32(minval % 2**32)
    return torch.from_numpy(offset.view(np.int32).reshape((*k.shape[:-1], *shape)))


def bernoulli(k: np.ndarray, p: float, shape: tuple[int, ...]) -> torch.Tensor:
    """jax.random.bernoulli with p in float32: bool, True with probability p."""
    return uniform(k, shape) < np.float32(p).item()


def erf_inv(x: np.ndarray) -> np.ndarray:
    """The inverse error function on (-1, 1), computed as XLA does: from log(1 - x^2) with x^2 rounded.

    In the tails this rounding changes the result (by 2e-5 at 5 standard deviations in float32).
    """
    square = (x * x).astype(np.float64)
    if x.dtype == np.float64:
        tail = (1 - square) / (2 * (1 + np.sqrt(square)))  # (1 - |x|) / 2 without cancellation
        return np.copysign(torch.special.ndtri(torch.from_numpy(tail)).numpy() / math.sqrt(2), x)
    w = -np.log1p(-square).astype(np.float32)
    central = w < 5
    w = np.where(central, w - np.float32(2.5), np.sqrt(w) - np.float32(3)).astype(np.float64)
    p, *rest = (np.where(central, *pair) for pair in ERF_INV)
    for coefficient in rest:
        p = (p * w + coefficient).astype(np.float32)  # a fused multiply-add: rounded once
    return p * x
