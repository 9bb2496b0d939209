"""From NumPy to PyTorch: devices, dtypes, and channels-last images to channels-first tensors."""

import numpy as np
import torch
from torch import Tensor, nn


def device_of(network: nn.Module) -> torch.device | None:
    """The device of the network's parameters; None if it has none."""
    parameter = next(network.parameters(), None)
    return None if parameter is None else parameter.device


def numpy_dtype(dtype) -> type:
    """NumPy's dtype for torch.float64, and float32 for all others."""
    return np.float64 if dtype == torch.float64 else np.float32


def channels_first(images: np.ndarray, device) -> Tensor:
    """NumPy (B, H, W, C) to a tensor (B, C, H, W) on `device`."""
    return torch.from_numpy(np.array(np.moveaxis(images, -1, 1), order="C")).to(device)  # a copy: JAX's are read-only
