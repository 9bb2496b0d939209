"""Between NumPy's channels-last arrays and PyTorch's channels-first tensors."""

import numpy as np
import torch
from torch import Tensor, nn


def device_of(network: nn.Module) -> torch.device | None:
    parameter = next(network.parameters(), None)
    return None if parameter is None else parameter.device


def numpy_dtype(dtype) -> type:
    return np.float64 if dtype == torch.float64 else np.float32


def channels_first(images: np.ndarray, device) -> Tensor:
    """NumPy (B, H, W, C) as (B, C, H, W) on a device."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))).to(device)
