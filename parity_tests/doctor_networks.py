"""Small PyTorch networks that together have every kind of layer, and their ports in Flax, right or with one fault."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

from parity_tests.doctor_images import Pictures, PicturesPort, Sizes, SizesPort
from parity_tests.doctor_tokens import Attended, AttendedPort, Timed, TimedPort, Tokens, TokensPort
from parity_tests.doctor_weights import copy_weights, scrambled

INPUTS = {
    "pictures": lambda g: (g.standard_normal((2, 3, 8, 8)),),
    "sizes": lambda g: (g.standard_normal((2, 4, 4, 4)),),
    "timed": lambda g: (g.standard_normal((2, 3, 8, 8)), np.array([3, 700])),
    "tokens": lambda g: (g.standard_normal((2, 3, 8, 8)), np.array([1, 3])),
    "attended": lambda g: (g.standard_normal((2, 6, 16)),),
}
NETWORKS = {
    "pictures": (Pictures, PicturesPort),
    "sizes": (Sizes, SizesPort),
    "timed": (Timed, TimedPort),
    "tokens": (Tokens, TokensPort),
    "attended": (Attended, AttendedPort),
}


def build(network: str, wrong: str = "") -> tuple[nn.Module, nnx.Module, tuple[np.ndarray, ...]]:
    """A torch network, its port with a fault (in float32), and inputs in PyTorch's layout."""
    theirs_class, ours_class = NETWORKS[network]
    torch.manual_seed(0)
    theirs, ours = scrambled(theirs_class()), ours_class(wrong)
    if hasattr(ours, "fill"):
        ours.fill(theirs)
    else:
        copy_weights(theirs, ours)
        if isinstance(theirs, Tokens):
            ours.position.set_value(jnp.asarray(theirs.position.detach().numpy()))
        ours.after_copy()
    inputs = INPUTS[network](np.random.default_rng(1))
    return theirs, ours, tuple(v.astype(np.float32) if v.dtype == np.float64 else v for v in inputs)
