"""`load_noisy_classifier`: a module with its settings as the attribute `info`."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from jax_ddpm.spec.errors import require_one_of
from jax_ddpm.spec.noisy_classifier import read_noisy_classifier
from jax_ddpm.spec.types import Precision
from torch_ref import unets
from torch_ref.weights import array_shapes, check_state_dict, load_state_dict


def load_noisy_classifier(
    path: str | os.PathLike[str],
    precision: str = "float32",
    *,
    network_settings: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> nn.Module:
    """Load a classifier of noisy images of guided-diffusion: a module in eval mode, with its settings as `info`.

    classifier(x, t) gives logits (B, K). Arguments and errors are those of `jax_ddpm.load_noisy_classifier`.
    """
    require_one_of("precision", precision, Precision)
    values, info = read_noisy_classifier(path, network_settings, array_shapes, log)
    with torch.device("meta"):  # takes no memory, whatever sizes the file claims
        check_state_dict(unets.build(info.network, info.image_channels), values)
    built = unets.build_in(precision, info.network, info.image_channels)
    load_state_dict(built, values, np.float64 if precision == "float64" else np.float32)
    built.info = info
    return built.eval()
