"""What a file of weights says about its model: the JSON metadata of `model.safetensors`."""

from dataclasses import asdict, dataclass

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.network_config import NetworkConfig

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelInfo:
    """What a file of weights must tell so that it can be used."""

    __pydantic_config__ = STRICT

    network: NetworkConfig
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    diffusion: DiffusionConfig
    step: int | None = None
    """Optimiser steps behind the weights, where known."""
    format_version: int = FORMAT_VERSION


def describe(info: ModelInfo, num_parameters: int) -> str:
    """The model in one line: network, parameters, image shape, diffusion."""
    height, width, channels = info.image_shape
    d = info.diffusion
    betas = f" {d.beta_start:g} to {d.beta_end:g}" if d.schedule == "linear" else ""
    settings = ", ".join(f"{key} {value}" for key, value in asdict(info.network).items() if key != "name")
    return (
        f"{info.network.name} ({settings}), {num_parameters:,} parameters, {height}x{width}x{channels}, "
        f"T = {d.timesteps}, {d.schedule}{betas}, predicts {d.objective}"
    )
