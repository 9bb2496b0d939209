"""The metadata of a weights file."""

from dataclasses import asdict, dataclass

from jax_ddpm.spec.data_range import USUAL
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.layout import Layout
from jax_ddpm.spec.network_config import NetworkConfig

FORMAT_VERSION = 1
LABEL_SETTINGS = ("num_classes", "num_class_embeds", "class_embed_type", "null_label")
"""Settings of a network that concern labels."""


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of a weights file: all that is needed to rebuild the model. model.safetensors stores it as JSON."""

    __pydantic_config__ = STRICT

    network: NetworkConfig
    """The network and its arguments."""
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    diffusion: DiffusionConfig
    """The diffusion settings that the model was trained with."""
    step: int | None = None
    """Optimiser steps that the weights were trained for, or None if unknown."""
    format_version: int = FORMAT_VERSION
    """Version of this metadata."""
    layout: Layout | None = None
    """For weights from somebody's checkpoint: its layout, in which they can be written back."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of their labels, without the null label; None if unknown or without classes."""


def describe(info: ModelInfo, num_parameters: int) -> str:
    """One line that describes a model: network, number of parameters, image shape, diffusion."""
    height, width, channels = info.image_shape
    skipped = ("name",) if info.network.takes_labels else ("name", *LABEL_SETTINGS)
    fields = {k: value for k, value in asdict(info.network).items() if k not in skipped and value not in (None, ())}
    settings = ", ".join(f"{key} {value}" for key, value in fields.items())
    return (
        f"{info.network.name} ({settings}), {num_parameters:,} parameters, {height}x{width}x{channels}, "
        f"{describe_diffusion(info.diffusion)}"
    )


def describe_diffusion(d: DiffusionConfig) -> str:
    """The noise levels, what the network predicts, and its images' range and timesteps if they are not the usual."""
    others = "" if d.data_range == USUAL else f", images from {d.data_range[0]:g} to {d.data_range[1]:g}"
    others += "" if d.t_input == "index" else f", t_input {d.t_input}"
    return f"{describe_noise(d)}{others}"


def describe_noise(d: DiffusionConfig) -> str:
    """The noise levels, and what the network predicts."""
    if d.objective == "edm":
        training = f"ln(sigma) in training N({d.p_mean:g}, {d.p_std:g}^2)"
        return f"edm, sigma {d.sigma_min:g} to {d.sigma_max:g}, sigma_data {d.sigma_data:g}, {training}"
    if d.objective == "flow":
        return f"flow, predicts noise - x_0, t in training {d.flow_time}"
    betas = f" {d.beta_start:g} to {d.beta_end:g}" if d.schedule in ("linear", "scaled_linear", "sigmoid_betas") else ""
    betas += ", zero terminal SNR" if d.zero_terminal_snr else ""
    return f"T = {d.timesteps}, {d.schedule}{betas}, predicts {d.objective}"
