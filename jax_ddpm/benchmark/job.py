"""What is measured: the settings that the processes of a benchmark share. Imports neither jax nor torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.network_config import AttentionConfig, NetworkConfig
from jax_ddpm.spec.presets import PRESETS, preset
from jax_ddpm.spec.run_config import RunConfig

What = Literal["train", "sample"]
Size = Literal["paper", "tiny"]

# Contenders and how torch is set up for each. The best of them is what PyTorch can do.
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
NUM_IMAGES = 1024  # of the data set that training draws its batches from, where batches are not larger


@dataclass(frozen=True)
class Job:
    """One contender's work: a training step, or sampling."""

    contender: str
    what: What
    run: RunConfig
    image_channels: int = 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        size = self.run.data.image_size
        return size, size, self.image_channels

    def images(self) -> np.ndarray:
        """The data set: uint8 (N, H, W, C), random."""
        count = max(NUM_IMAGES, self.run.training.batch_size)
        return np.random.default_rng(SEED).integers(0, 256, (count, *self.image_shape), np.uint8)


@dataclass(frozen=True)
class Contender:
    """A contender that is ready: warmed up, and its output known.

    run(n): do n units of `steps` steps each, and wait for them. check: its output for fixed weights and input, by name.
    about: device, seconds of compilation and the like, for people. peak_memory: bytes on a GPU, None on a CPU, where
    the process knows better. forget_peak: between turns, where the framework can begin to count anew and give the
    others what it does not use. profile: what an accelerator does during a unit.
    """

    run: Callable[[int], None]
    steps: int
    check: dict[str, np.ndarray]
    about: dict
    peak_memory: Callable[[], int | None] = lambda: None
    forget_peak: Callable[[], None] = lambda: None
    profile: Callable[[], dict[str, float]] = dict


class Absent(Exception):
    """This contender cannot take part here; the message says why."""


def recipe(network: str, size: Size) -> RunConfig:
    """The recipe of a network: its preset, or a small network for a CPU. UserError for an unknown name."""
    papers = {r.network.name: name for name, r in PRESETS.items() if name not in ("digits", "tiny")}
    if network not in papers:
        raise UserError(f"Unknown network '{network}': expected one of {', '.join(papers)}.")
    paper = preset(papers[network])
    if size == "paper":
        return paper
    return replace(paper, network=tiny(paper.network), data=replace(paper.data, image_size=tiny_size(network)))


def tiny(network: NetworkConfig) -> NetworkConfig:
    """Some hundred thousand parameters, where the network has a choice."""
    if network.name == "conv_block":
        return preset("tiny").network
    if network.name == "attention":
        return AttentionConfig(channels=32, multipliers=(1, 2), attention=(False, True), blocks=1)
    if network.name == "ddpm":
        return replace(network, widths=(32, 64), down_attention=(False, True), up_attention=(True, False))
    return network


def tiny_size(network: str) -> int:
    return 28 if network == "layer_norm" else 16
