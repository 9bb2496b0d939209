"""The settings that all processes of a benchmark share. Imports neither jax nor torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import height_and_width
from jax_ddpm.spec.network_config import AttentionConfig, NetworkConfig
from jax_ddpm.spec.presets import PRESETS, preset
from jax_ddpm.spec.run_config import RunConfig

What = Literal["train", "sample"]
Size = Literal["paper", "tiny"]

# The contenders with PyTorch, and how each is set up. The best one shows what PyTorch can do.
TORCH_SETTINGS = {
    "torch": {},
    "torch-channels-last": {"channels_last": True},
    "torch-compile": {"compile_mode": "default"},
    "torch-compile-channels-last": {"compile_mode": "default", "channels_last": True},
    "torch-cuda-graphs": {"compile_mode": "reduce-overhead", "channels_last": True},
    "torch-max-autotune": {"compile_mode": "max-autotune", "channels_last": True},
    "diffusers": {},
}
CONTENDERS = ("jax", *TORCH_SETTINGS)
MATRIX_PRODUCTS = ("matrix product, jax", "matrix product, torch")

SEED = 0
NUM_IMAGES = 1024  # in the training set, unless a batch is larger


@dataclass(frozen=True)
class Job:
    """The work of one contender: training steps, or sampling."""

    contender: str
    what: What
    run: RunConfig
    image_channels: int = 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (*height_and_width(self.run.data.image_size), self.image_channels)

    def images(self) -> np.ndarray:
        """A training set of random images, uint8 (N, H, W, C)."""
        count = max(NUM_IMAGES, self.run.training.batch_size)
        return np.random.default_rng(SEED).integers(0, 256, (count, *self.image_shape), np.uint8)


@dataclass(frozen=True)
class Contender:
    """A contender that is ready: it is compiled and warmed up, and its output is known."""

    run: Callable[[int], None]
    """run(n): do `steps` steps n times, and wait for the result."""
    steps: int
    """Steps of a training dispatch, or of a whole reverse process."""
    check: dict[str, np.ndarray]
    """Its outputs for fixed weights and inputs, by name. They must agree with those of the first contender."""
    about: dict
    """Platform, device, version, seconds of compilation, FLOPs and the like."""
    peak_memory: Callable[[], int | None] = lambda: None
    """Peak bytes on a GPU. None on a CPU; there the process reports its peak resident set."""
    reset_peak_memory: Callable[[], None] = lambda: None
    """Called between turns: resets the peak and frees cached memory, if the framework can do that."""
    profile: Callable[[], dict[str, float]] = dict
    """Numbers from a profile of run(1) on an accelerator."""


class Unavailable(Exception):
    """This contender cannot run here; the message says why."""


def recipe(network: str, size: Size) -> RunConfig:
    """The settings for a network: its preset ("paper"), or a small version ("tiny"). UserError for an unknown name."""
    papers = {r.network.name: name for name, r in PRESETS.items() if name not in ("digits", "tiny")}
    if network not in papers:
        raise UserError(f"Unknown network '{network}': expected one of {', '.join(papers)}.")
    paper = preset(papers[network])
    if size == "paper":
        return paper
    return replace(paper, network=tiny(paper.network), data=replace(paper.data, image_size=tiny_size(network)))


def tiny(network: NetworkConfig) -> NetworkConfig:
    """A version of the network with a few hundred thousand parameters; unchanged if it has no size settings."""
    if network.name == "conv_block":
        return preset("tiny").network
    if network.name == "attention":
        return AttentionConfig(channels=32, multipliers=(1, 2), attention=(False, True), blocks=1)
    if network.name == "ddpm":
        return replace(network, widths=(32, 64), down_attention=(False, True), up_attention=(True, False))
    return network


def tiny_size(network: str) -> int:
    return 28 if network == "layer_norm" else 16
