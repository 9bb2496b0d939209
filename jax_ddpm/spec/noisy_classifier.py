"""Classifiers of noisy images, which guide sampling: their files, and whether one fits a model."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jax_ddpm.spec.adm_classifier_config import ADMClassifierConfig
from jax_ddpm.spec.choose_weights import choose, describe_choice
from jax_ddpm.spec.data_range import USUAL
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.find_weights import ShapesOf, find_weights
from jax_ddpm.spec.hub import local_path
from jax_ddpm.spec.inputs import check_path
from jax_ddpm.spec.read_content import open_model, read_arrays
from jax_ddpm.spec.recognise_adm_classifier import recognise_adm_classifier
from jax_ddpm.spec.types import StateDict

EXPECTED = "expected a file with the weights of guided-diffusion's EncoderUNetModel, such as 64x64_classifier.pt"
INFINITE = (
    "At zero terminal SNR a classifier guides with the sampler ddpm only: the others would divide by 0.\n"
    "Use --sampler ddpm (in Python: sampler='ddpm'), or omit --classifier."
)
EXPECTED_CLASSIFIER = "expected what load_noisy_classifier returns, or the path of a classifier"


@dataclass(frozen=True)
class NoisyClassifierInfo:
    """What is known about a classifier of noisy images."""

    network: ADMClassifierConfig
    """Its settings."""
    image_channels: int
    """Channels of its images."""


def read_noisy_classifier(
    path: str | os.PathLike,
    network_settings: Mapping[str, Any] | None,
    shapes_of: ShapesOf,
    log: Callable[[str], None],
) -> tuple[StateDict, NoisyClassifierInfo]:
    """The arrays of a classifier's file by PyTorch name, and its settings. For `load_noisy_classifier`, as there."""
    check_path("path", path, EXPECTED)
    path = local_path(path, log)
    if path.is_dir():
        raise UserError(f"{path} is a folder: {EXPECTED}.")
    file, settings = open_model(path), {ADMClassifierConfig.name: dict(network_settings or {})}
    recognisers = {"input_blocks.0.0.weight": recognise_adm_classifier}
    found = [] if file.metadata is not None else find_weights(file.content, shapes_of, settings, None, recognisers)
    found = [each for each in found if each.recognised.kind is ADMClassifierConfig]
    if not found:
        raise UserError(f"{path} is no classifier of noisy images: {EXPECTED}.\nA diffusion model is given as --model.")
    if found[0].conflict is not None:
        raise UserError(
            f"{path}: {found[0].conflict}\nSettings that shapes do not show can be given: "
            "--classifier-setting NAME=VALUE (in Python: network_settings={'NAME': VALUE})."
        )
    chosen = choose(path, file.content, found, None, shapes_of, found[0].network)
    assert isinstance(chosen.network, ADMClassifierConfig)
    log(describe_choice(path, file.content, found, chosen, None, ()))
    given = settings[ADMClassifierConfig.name]
    assumed = [f"{name} {getattr(chosen.network, name)}" for name in chosen.recognised.not_shown if name not in given]
    if assumed:
        log(f"Assumed of the classifier, as in the published ones: {', '.join(assumed)}.")
    return read_arrays(chosen.arrays, path), NoisyClassifierInfo(chosen.network, chosen.recognised.image_channels)


def check_noisy_classifier(
    info: NoisyClassifierInfo,
    scale: float,
    config: DiffusionConfig,
    image_shape: tuple[int, int, int],
) -> None:
    """Raise UserError if the classifier cannot guide a model with these settings and images, and for a wrong scale.

    Such classifiers know images in [-1, 1], and noise by its timestep.
    """
    fits = isinstance(scale, int | float) and math.isfinite(scale)
    require(fits, "classifier_scale", scale, "expected a finite number, such as 1")
    channels = info.image_channels
    require(
        channels == image_shape[2], "channels of the classifier", channels, f"expected the model's {image_shape[2]}"
    )
    info.network.check(tuple(image_shape[:2]))
    if config.is_continuous:
        raise UserError(f"objective = {config.objective}: a classifier needs timesteps. Omit --classifier.")
    expected = "a classifier takes images from -1 to 1. Omit --classifier"
    require(tuple(config.data_range) == USUAL, "data_range", config.data_range, expected)
