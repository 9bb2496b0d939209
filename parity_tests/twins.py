"""What the comparisons of torch_ref with jax_ddpm share."""

from pathlib import Path

import numpy as np
import pytest
import torch

import jax_ddpm.unets
import jax_ddpm.weights
import torch_ref.unets
import torch_ref.weights
from jax_ddpm.spec.network_config import ConvBlockConfig

torch.set_num_threads(1)  # beside JAX's, its threads wait for one another; ten times slower on two cores

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
MOSTLY_FLOAT64 = pytest.mark.parametrize(  # where the ladder has the same in float32
    "dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64]
)
TORCH = {np.float32: torch.float32, np.float64: torch.float64}
OBJECTIVES, VARIANCES, CLIPS = ["eps", "x0", "v"], ["beta", "posterior"], ["x0", "state", "none"]
ROOT = Path(__file__).parent.parent


def to_torch(x) -> torch.Tensor:
    """Channels last to channels first."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, -3).copy())


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """Channels first to channels last."""
    return np.moveaxis(x.detach().numpy(), -3, -1)


def assert_close(ours, theirs, budget):
    """Equal shapes and dtypes, and apart by at most `budget` of the largest magnitude."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=budget * max(1e-30, np.abs(theirs).max()))


def batch(dtype, seed=0, shape=(5, 4, 6, 3)):
    """x_0, noise, prediction (channels last) and t, with the first and the last timestep of a thousand."""
    g = np.random.default_rng(seed)
    x_0, noise, prediction = g.standard_normal((3, *shape)).astype(dtype)
    return x_0, noise, prediction, np.array([0, 1, 500, 998, 999])


NETWORK_SETTINGS = {"widths": (32, 64), "time_width": 32}


def networks(dtype=np.float32, seed=7, channels=3, **settings):
    """A small conv_block with the same random weights in both."""
    config = ConvBlockConfig(**NETWORK_SETTINGS | settings)
    theirs, ours = jax_ddpm.unets.build(config, channels), torch_ref.unets.build(config, channels)
    jax_ddpm.weights.initialise(theirs, seed)
    values = jax_ddpm.weights.state_dict(theirs)
    jax_ddpm.weights.load_state_dict(theirs, values, dtype)
    torch_ref.weights.load_state_dict(ours, values, dtype)
    return ours, theirs
