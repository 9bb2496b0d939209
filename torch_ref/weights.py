"""Parameters as NumPy arrays under their PyTorch names, strictly; how they start.

A state dict here is a dict of NumPy arrays, the same as `jax_ddpm.weights` reads and writes.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from torch_ref import rng
from torch_ref.errors import UserError

StateDict = dict[str, np.ndarray]


def state_dict(network: nn.Module) -> StateDict:
    """A network's parameters and buffers, copied."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def load_state_dict(network: nn.Module, values: Mapping[str, np.ndarray], dtype=np.float32) -> None:
    """Fill a network with a state dict, in place, rounded or widened to `dtype`.

    Raises UserError that lists every missing, unexpected, mis-shaped and non-finite array.
    """
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    faults = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in values]
    faults += [f"unexpected: {name} {tuple(np.shape(values[name]))}" for name in values if name not in wanted]
    for name, shape in wanted.items():
        if name not in values:
            continue
        value = np.asarray(values[name])
        if value.shape != shape:
            faults.append(f"shape: {name} is {value.shape}, expected {shape}")
        elif not np.isfinite(value.astype(dtype)).all():
            faults.append(f"not finite: {name}")
    if faults:
        raise UserError(f"The weights do not fit {type(network).__name__}: " + "; ".join(faults) + ".")
    filled = {name: torch.from_numpy(np.array(values[name], dtype)) for name in wanted}
    network.to(next(iter(filled.values())).dtype).load_state_dict(filled, strict=True)


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """Fill a network with PyTorch's default initial values, in place, each drawn at (PARAMS, crc32 of its name).

    Kernels: kaiming-uniform with a = sqrt(5), that is uniform within 1/sqrt(fan_in); so are their biases. Norms: one
    and zero. Buffers keep the value that the network computes. Raises UserError for a layer that it does not know.
    """
    for path, layer in network.named_modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.fill_(1)
            layer.bias.fill_(0)
        elif isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = np.float32(1 / math.sqrt(fan_in(layer)))
            for name, parameter in layer.named_parameters(path, recurse=False):
                k = rng.key(seed, rng.PARAMS, zlib.crc32(name.encode()))
                u = rng.uniform(k, tuple(parameter.shape)).numpy()
                parameter.copy_(torch.from_numpy((2 * u - 1) * bound))
        elif any(True for _ in layer.parameters(recurse=False)):
            raise UserError(
                f"No initial values are known for {path}, a {type(layer).__name__}: see weights.initialise."
            )


def fan_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> int:
    """What PyTorch's initialisers call fan-in: for a transposed convolution the *output* channels times k^2."""
    return math.prod(layer.weight.shape[1:])
