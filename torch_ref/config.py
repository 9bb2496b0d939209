"""What a file of weights must tell so that it can be used: the JSON metadata of `model.safetensors`."""

import json
import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch_ref.errors import UserError, one_of, require
from torch_ref.network_config import (
    NETWORKS,
    AttentionConfig,
    ConvBlockConfig,
    DDPMConfig,
    LayerNormConfig,
    NetworkConfig,
    StridedConfig,
)

Schedule = Literal["linear", "cosine", "sigmoid"]
Objective = Literal["eps", "x0", "v"]
Variance = Literal["beta", "posterior", "learned_range"]
Clip = Literal["x0", "dynamic", "state", "none"]
Sampler = Literal["ddpm", "ddim", "dpmpp", "heun", "euler"]
Spacing = Literal["linspace", "leading", "trailing", "logsnr"]
Precision = Literal["float32", "bfloat16", "float64"]

FORMAT_VERSION = 1  # of model.safetensors' metadata


@dataclass(frozen=True)
class DiffusionConfig:
    timesteps: int = 1000
    """T, the length of the diffusion."""
    schedule: Schedule = "linear"
    """Noise schedule: linear (Ho et al. 2020), cosine (Nichol & Dhariwal 2021), sigmoid (Jabri et al. 2022)."""
    beta_start: float = 1e-4
    """beta_1 of the linear schedule."""
    beta_end: float = 0.02
    """beta_T of the linear schedule."""
    objective: Objective = "eps"
    """What the network predicts: the noise, the clean image, or v (Salimans & Ho 2022)."""
    variance: Variance = "beta"
    """Variance of a reverse step: beta_t, the posterior's, or between them as learned (Nichol & Dhariwal 2021)."""
    clip: Clip = "x0"
    """While sampling: clip the predicted x_0 to [-1, 1], threshold it (dynamic), clamp every x_t (state), or none."""
    clip_percentile: float = 0.995
    """Of dynamic thresholding (Saharia et al. 2022): the share of an image's pixels that are not clipped."""

    def check(self) -> None:
        require(self.timesteps >= 1, "timesteps", self.timesteps, "expected at least 1")
        require(
            0 < self.beta_start <= self.beta_end < 1,
            "beta_start, beta_end",
            (self.beta_start, self.beta_end),
            "expected 0 < beta_start <= beta_end < 1, such as 1e-4 and 0.02",
        )
        for name, choices in (("schedule", Schedule), ("objective", Objective), ("variance", Variance), ("clip", Clip)):
            one_of(name, getattr(self, name), choices)
        require(0 < self.clip_percentile <= 1, "clip_percentile", self.clip_percentile, "expected above 0, up to 1")


@dataclass(frozen=True)
class SamplerConfig:
    sampler: Sampler = "ddpm"
    """Ancestral (ddpm); ddim (Song et al. 2021); dpmpp: DPM-Solver++ 2M (Lu et al. 2022); heun, euler (EDM)."""
    num_steps: int | None = None
    """Steps from noise to picture. Default: T."""
    spacing: Spacing = "trailing"
    """Which timesteps fewer steps visit: evenly in t (linspace, leading, trailing), or in the logarithm of the SNR."""
    eta: float = 0.0
    """Noise of ddim, from 0 (none) to 1 (as much as the posterior has)."""

    @property
    def is_deterministic(self) -> bool:
        """Whether x_T alone decides the picture."""
        return self.sampler != "ddpm" and self.eta == 0

    def check(self, timesteps: int) -> None:
        one_of("sampler", self.sampler, Sampler)
        one_of("spacing", self.spacing, Spacing)
        steps = self.num_steps
        require(steps is None or 1 <= steps <= timesteps, "num_steps", steps, f"expected 1 to T = {timesteps}")
        require(0 <= self.eta <= 1, "eta", self.eta, "expected 0 to 1")
        require(self.eta == 0 or self.sampler == "ddim", "eta", self.eta, f"{self.sampler} has none, ddim has")


@dataclass(frozen=True)
class ModelInfo:
    """What a file of weights must tell so that it can be used."""

    network: NetworkConfig
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    diffusion: DiffusionConfig
    step: int | None = None
    """Optimiser steps behind the weights, where known."""
    format_version: int = FORMAT_VERSION


# What a file without metadata is taken for, by its network.
PRESETS: dict[str, ModelInfo] = {
    "conv_block": ModelInfo(ConvBlockConfig(), (32, 32, 1), DiffusionConfig()),
    "strided": ModelInfo(StridedConfig(), (32, 32, 3), DiffusionConfig()),
    "attention": ModelInfo(AttentionConfig(), (32, 32, 1), DiffusionConfig(beta_start=1e-5, variance="posterior")),
    "layer_norm": ModelInfo(LayerNormConfig(), (28, 28, 1), DiffusionConfig()),
    "ddpm": ModelInfo(DDPMConfig(), (32, 32, 3), DiffusionConfig()),
}


def from_json(cls: type, text: str, source: str):
    """An object of a config dataclass from JSON text; `source` is named in errors.

    Raises UserError that names the missing, unknown or mistyped fields.
    """
    faults: list[str] = []
    try:
        value = parsed(cls, json.loads(text), "", faults)
    except (ValueError, OverflowError, RecursionError) as error:
        faults.append(f"JSON: {error}")
    if faults:
        raise UserError(f"{source} is not a valid {cls.__name__}: {'; '.join(faults[:5])}.")
    return value


def parsed(kind, value, place: str, faults: list[str]) -> Any:
    """`value`, out of JSON, as the annotation `kind` has it; what is wrong is appended to `faults` with its place."""
    if kind is NetworkConfig and isinstance(value, dict):
        name = value.get("name")
        if not isinstance(name, str) or name not in NETWORKS:
            faults.append(f"{place}.name: {name!r} is not one of {', '.join(NETWORKS)}")
            return None
        kind = NETWORKS[name]
    if is_dataclass(kind) and isinstance(value, dict):
        return parsed_fields(kind, value, place, faults)
    if isinstance(kind, types.UnionType):  # X | None
        return None if value is None else parsed(get_args(kind)[0], value, place, faults)
    if get_origin(kind) is tuple and isinstance(value, list):
        item, length = get_args(kind)[0], None if get_args(kind)[-1] is Ellipsis else len(get_args(kind))
        if length in (None, len(value)):
            return tuple(parsed(item, v, f"{place}.{i}", faults) for i, v in enumerate(value))
    if get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    wanted = " or ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else getattr(kind, "__name__", kind)
    faults.append(f"{place or 'JSON'}: {value!r} is not {wanted}")
    return None


def parsed_fields(cls: type, values: dict, place: str, faults: list[str]) -> Any:
    kinds, prefix = get_type_hints(cls), f"{place}." if place else ""
    required = [field.name for field in fields(cls) if field.default is MISSING]
    faults += [f"{prefix}{name}: missing" for name in required if name not in values]
    faults += [f"{prefix}{name}: unknown" for name in values if name not in kinds]
    known = {
        name: parsed(kinds[name], value, f"{prefix}{name}", faults) for name, value in values.items() if name in kinds
    }
    return None if faults else cls(**known)
