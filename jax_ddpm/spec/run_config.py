"""Settings of a training run: data, training, output, and all of them together.

The flags of `jax-ddpm train` are the fields of `RunConfig`, and a run's `config.json` is a `RunConfig` as JSON.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.errors import require, require_one_of
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.network_config import ConvBlockConfig, NetworkConfig
from jax_ddpm.spec.types import Precision

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class DataConfig:
    __pydantic_config__ = STRICT

    dataset: str = "digits"
    """digits, any image data set of tensorflow_datasets by its name (fashion_mnist, cifar10, ...), or folder:PATH."""
    image_size: int = 32
    """Height and width; the short side is resized, then the centre cut out."""
    data_dir: str | None = None
    """Where tensorflow_datasets keeps its data (its own default: ~/tensorflow_datasets)."""
    manual_dir: str | None = None
    """Archives downloaded by hand, from which tensorflow_datasets prepares without a network."""
    cache_dir: str | None = None
    """Where decoded images are kept (default: ~/.cache/jax_ddpm)."""
    validation_fraction: float | None = None
    """Share of the training images held out. Default: the data set's own test split, or a tenth where it has none."""
    flip: bool = False
    """Flip half of the training images left to right, at random."""


@dataclass(frozen=True)
class TrainingConfig:
    __pydantic_config__ = STRICT

    epochs: int = 1000
    """Passes over the training images."""
    steps: int | None = None
    """Optimiser steps; overrules --epochs."""
    batch_size: int = 64
    """Images per optimiser step."""
    accumulate: int = 1
    """Split a batch into this many parts, one after another, to save memory; the result is the same."""
    remat: bool = False
    """Compute the activations within each block again for the gradient instead of keeping them, to save memory."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW, which takes --weight-decay."""
    weight_decay: float = 0.0
    """Decoupled weight decay of adamw."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: anneal by a cosine over the whole run, or stay."""
    min_learning_rate: float = 1e-6
    """Where the cosine ends."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    clip_norm: float | None = None
    """Scale gradients down to this global norm."""
    min_snr_gamma: float | None = None
    """Weight the loss by min-SNR-gamma (Hang et al. 2023; 5 is usual). Default: plain mean squared error."""
    ema: bool = True
    """Sample and export an exponential moving average of the weights."""
    ema_decay: float = 0.9999
    """Its decay, reached by a warm-up: (1 + step) / (10 + step) where that is smaller."""
    max_skipped: int = 20
    """Steps in a row whose loss or gradient is not finite, and that were therefore skipped, before the run stops."""
    precision: Precision = "float32"
    """Of the network's activations; parameters, EMA and loss stay float32 (float64: everything, for comparisons)."""
    seed: int = 0
    """Decides the initial weights, the order of the images, timesteps, noise and the sampled pictures."""
    init_from: str | None = None
    """Start from the weights of this run folder, diffusers folder, .safetensors, .pt, .pth or .bin."""

    def check(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "max_skipped"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, "expected at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"must divide the batch size, {self.batch_size}",
        )
        require_one_of("optimizer", self.optimizer, Literal["adam", "adamw"])
        require_one_of("lr_schedule", self.lr_schedule, Literal["cosine", "constant"])
        require_one_of("precision", self.precision, Precision)
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "expected 0 or more")
        require(
            self.weight_decay == 0 or self.optimizer == "adamw",
            "weight_decay",
            self.weight_decay,
            "adam has none; use --optimizer adamw",
        )
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "expected more than 0")
        if self.lr_schedule == "cosine":
            require(
                0 <= self.min_learning_rate <= self.learning_rate,
                "min_learning_rate",
                self.min_learning_rate,
                f"expected 0 to the learning rate, {self.learning_rate}",
            )
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "expected 0 or more")
        for name in ("clip_norm", "min_snr_gamma"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "expected more than 0")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "expected 0 to below 1, such as 0.9999")
        require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"expected an integer from 0 to {MAX_SEED}")


@dataclass(frozen=True)
class OutputConfig:
    __pydantic_config__ = STRICT

    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    validate_every: int = 0
    """Steps between validations; 0: after every epoch, or after as many as make 500 steps."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: as validate_every 0, fewer where they would take more than a tenth of the time."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    keep_every: int = 0
    """Keep also the checkpoints whose step is a multiple of this; 0: no others."""
    keep_best: bool = False
    """Keep the checkpoint of the best validation loss too; export and picture its weights, not the last ones."""
    sample_every: int = 0
    """Steps between sample grids during the training, drawn in few steps; 0: only the closing pictures."""
    sample_every_epochs: int = 0
    """Epochs between sample grids; 0: as --sample-every says."""
    num_samples: int = 64
    """Images of a sample grid, at most; fewer where the network is slow."""
    gif_frames: int = 0
    """Frames of a GIF of the way from noise to the closing grid; 0: no GIF."""
    tensorboard: bool = True
    """Write the metrics and the sample grids for TensorBoard too."""

    def check(self) -> None:
        for name in ("log_every", "keep_checkpoints", "num_samples"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")
        intervals = ("validate_every", "checkpoint_every", "keep_every", "sample_every", "sample_every_epochs")
        for name in intervals:
            require(getattr(self, name) >= 0, name, getattr(self, name), "expected 0 or more")
        require(self.gif_frames == 0 or self.gif_frames >= 2, "gif_frames", self.gif_frames, "expected 0, or 2 or more")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    __pydantic_config__ = STRICT

    preset: str = "digits"
    """Recipe that the other flags start from: see --list-presets. Default: digits for digits, else conv_block."""
    data: DataConfig = DataConfig()
    network: NetworkConfig = field(default_factory=ConvBlockConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampling: SamplerConfig = field(default_factory=SamplerConfig)
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()

    def check(self) -> None:
        """UserError that names the first wrong field."""
        size = self.data.image_size
        require(size >= 1, "image_size", size, "expected at least 1")
        fraction = self.data.validation_fraction
        require(fraction is None or 0 <= fraction < 1, "validation_fraction", fraction, "expected 0 to below 1")
        self.network.check(size, self.diffusion.timesteps)
        learned, variance = getattr(self.network, "learned_variance", False), self.diffusion.variance
        wanted = (
            "learned_variance wants --variance learned_range" if learned else "expected a network with learned_variance"
        )
        require(learned == (variance == "learned_range"), "variance", variance, wanted)
        for section in (self.diffusion, self.training, self.output):
            section.check()
        self.sampling.check(self.diffusion.timesteps)


def slug(dataset: str) -> str:
    """A data set's name as part of a folder's name: folder:/a/My Photos becomes folder-My_Photos."""
    kind, _, path = dataset.partition(":")
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return re.sub(r"[^\w.-]+", "_", f"{kind}-{last}" if last else kind)
