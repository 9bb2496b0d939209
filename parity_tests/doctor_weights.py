"""Random weights for torch modules, and the same weights for their ports."""

import math

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn


def rngs():
    return nnx.Rngs(0)


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, its parameters and buffers random, norms' scales around 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=g)
            fan_in = max(1, value[0].numel()) if value.ndim > 1 else 1
            value.copy_(noise / math.sqrt(fan_in) if value.ndim > 1 else 0.3 * noise)
            if name.endswith(("norm.weight", "1.weight", "2.weight", "bn.weight")) and value.ndim == 1:
                value.add_(1.0)
            if name.endswith("running_var"):
                value.copy_(noise.abs() + 0.5)
    return module.eval()


def copy_weights(theirs: nn.Module, ours: nnx.Module) -> None:
    """Fill a port whose modules have the same names as theirs."""
    for name, module in theirs.named_modules():
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        target = ours
        for part in name.split(".") if name else []:
            if part.isdigit():
                target = target[int(part)] if int(part) < len(target) else None
            else:
                target = getattr(target, part, None)
            if target is None:
                break
        if target is not None:
            for key, value in own.items():
                put(target, module, key, value.detach().numpy())


NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)


def put(target, module: nn.Module, key: str, value: np.ndarray) -> None:
    """One array into a layer of Flax or of jax_ddpm."""
    names = {"weight": "kernel", "running_mean": "mean", "running_var": "var"}
    if isinstance(module, NORMS):
        names["weight"] = "scale"
    elif isinstance(module, nn.Embedding):
        names["weight"] = "embedding"
    name = names.get(key, key)
    variable = getattr(target, name, None)
    if variable is None or not isinstance(variable, nnx.Variable) or variable.get_value() is None:
        return
    if isinstance(module, nn.Linear) and key == "weight":
        value = value.T
    elif isinstance(module, nn.Conv2d) and key == "weight":
        value = value.transpose(2, 3, 1, 0)
    elif isinstance(module, nn.ConvTranspose2d) and key == "weight":
        value = value.transpose(2, 3, 0, 1)
        if isinstance(target, nnx.ConvTranspose):
            value = value[::-1, ::-1]
    if value.shape == variable.shape:
        variable.set_value(jnp.asarray(value))


def kernel(layer, change) -> None:
    layer.kernel.set_value(jnp.asarray(change(np.asarray(layer.kernel.get_value()))))
