"""`load_noisy_classifier`, and the `NoisyClassifier` that it returns."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from jax_ddpm import unets
from jax_ddpm.process import check_devices
from jax_ddpm.spec.errors import require_one_of
from jax_ddpm.spec.noisy_classifier import NoisyClassifierInfo, read_noisy_classifier
from jax_ddpm.spec.types import Precision
from jax_ddpm.weights.convert import array_shapes, load_state_dict, to_device


@dataclass(frozen=True)
class NoisyClassifier:
    """A classifier of noisy images, and its settings. classifier.network(x, t) gives logits (B, K)."""

    network: nnx.Module
    """The network as a Flax NNX module: x (B, H, W, C), t integers (B,) in [0, T)."""
    info: NoisyClassifierInfo
    """Settings and image channels."""


def load_noisy_classifier(
    path: str | os.PathLike[str],
    precision: str = "float32",
    *,
    network_settings: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> NoisyClassifier:
    """Load a classifier of noisy images of guided-diffusion, for `sample(..., classifier=...)`.

    Source: Dhariwal & Nichol 2021, section 4. The network is recognised by names and shapes of its arrays.

    Args:
        path: a PyTorch or safetensors file with the weights of an EncoderUNetModel, such as 64x64_classifier.pt.
        precision: as in `load_model`. The pooling is computed in float32, also with "bfloat16".
        network_settings: settings that shapes do not show, such as {"num_head_channels": 32}, if they are not those of
            the published classifiers.
        log: called with each line that says what was taken from the file and what was assumed.

    Raises:
        UserError: the file is no such classifier, or a setting is wrong.
    """
    require_one_of("precision", precision, Precision)
    check_devices()
    values, info = read_noisy_classifier(path, network_settings, array_shapes, log)
    built = unets.build_in(precision, info.network, info.image_channels)
    load_state_dict(built, values, np.float64 if precision == "float64" else np.float32)
    to_device(built)
    return NoisyClassifier(built, info)
