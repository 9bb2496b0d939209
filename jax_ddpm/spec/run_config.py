"""Settings of a training run.

The flags of `jax-ddpm train` are the fields of the parts of `RunConfig`. A run's config.json is a `RunConfig` as JSON.
"""

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from jax_ddpm.spec.check_types import check_types
from jax_ddpm.spec.diffusion_config import SOLVERS, DiffusionConfig, SamplerConfig, check_sampler, default_sampler
from jax_ddpm.spec.errors import UserError, require, require_one_of
from jax_ddpm.spec.flat_settings import with_settings
from jax_ddpm.spec.image_size import ImageSize, height_and_width, shortest
from jax_ddpm.spec.json_text import STRICT
from jax_ddpm.spec.network_config import ConvBlockConfig, NetworkConfig
from jax_ddpm.spec.power_ema import check_width
from jax_ddpm.spec.types import LossKind, Precision, Tracker

MAX_SEED = 2**32 - 1
LRSchedule = Literal["cosine", "linear", "constant"]
LOSS_SETTINGS = ("min_snr_gamma", "loss_kind", "huber_delta", "p2_gamma", "p2_k")


@dataclass(frozen=True)
class DataConfig:
    """The images to train on."""

    __pydantic_config__ = STRICT

    dataset: str = "digits"
    """digits, folder:PATH, a .zip, .npz or .npy file, or a name of tensorflow_datasets such as cifar10."""
    image_size: ImageSize = 32
    """Height and width in pixels, or one number for square images. Images are resized to cover it, then cropped."""
    data_dir: str | None = None
    """Folder where tensorflow_datasets stores its data. Default: ~/tensorflow_datasets."""
    manual_dir: str | None = None
    """Folder of manually downloaded archives, so that tensorflow_datasets works without internet access."""
    cache_dir: str | None = None
    """Folder where decoded images are stored. Default: ~/.cache/jax_ddpm."""
    validation_fraction: float | None = None
    """Fraction of the training images to hold out. Default: use the data set's test split, or 0.1 if it has none."""
    value_range: tuple[float, float] | None = None
    """The values that become black and white, for 16-bit images and arrays. Default: the range of the data set."""
    flip: bool = False
    """Flip each training image left to right with probability 1/2."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", shortest(self.image_size))  # so that 32 and (32, 32) are equal


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the optimisation."""

    __pydantic_config__ = STRICT

    epochs: int = 1000
    """Passes over the training images."""
    steps: int | None = None
    """Optimiser steps. If given, epochs are ignored."""
    batch_size: int = 64
    """Images per optimiser step."""
    accumulate: int = 1
    """Split a batch into this many parts and add up their gradients, to save memory. The result is the same."""
    remat: bool = False
    """Gradient checkpointing: recompute the activations of each block in the backward pass, to save memory."""
    fsdp: bool = False
    """Split parameters, averages and the optimiser's state over the devices, to save memory (ZeRO-3). The result is the
    same."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Optimiser: Adam, or AdamW with weight_decay."""
    weight_decay: float = 0.0
    """Decoupled weight decay of adamw."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    lr_schedule: LRSchedule = "cosine"
    """Learning rate after the warm-up: down to min_learning_rate at the end of the run by a cosine or a line
    (linear), or constant."""
    min_learning_rate: float = 1e-6
    """Final learning rate of the schedules cosine and linear."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0."""
    clip_norm: float | None = None
    """Clip gradients to this global norm. Default: no clipping."""
    min_snr_gamma: float | None = None
    """gamma of the min-SNR-gamma loss weights (Hang et al. 2023; 5 is usual). Default: no weights."""
    p2_gamma: float | None = None
    """gamma of the P2 loss weights (k + SNR)^-gamma (Choi et al. 2022; 0.5 or 1). Default: no weights."""
    p2_k: float = 1.0
    """k of the P2 loss weights."""
    loss_kind: LossKind = "l2"
    """Loss of a pixel's error: l2 (squared), l1 (absolute) or huber (squared below huber_delta, absolute above)."""
    huber_delta: float = 1.0
    """For huber: the error at which it becomes linear."""
    ema: bool = True
    """Keep an exponential moving average (EMA) of the weights, and sample and export it instead of the weights."""
    ema_decay: float = 0.9999
    """Decay of the EMA. Early steps use (1 + step) / (10 + step) if it is smaller."""
    power_ema: bool = False
    """Also keep two power-function averages and store snapshots of them, from which any other width can be made after
    the training (--ema-width; Karras et al. 2024)."""
    power_ema_widths: tuple[float, float] = (0.05, 0.1)
    """For --power-ema: the widths of the two averages, relative to the length of the training."""
    max_skipped: int = 20
    """Stop the run after this many consecutive steps with a non-finite loss or gradient. Such steps are skipped."""
    precision: Precision = "float32"
    """dtype of the activations. Parameters, EMA and loss stay float32. With float64, everything is float64. tf32:
    float32, but products in TF32 on GPUs and in three bfloat16 passes on TPUs."""
    seed: int = 0
    """Seed of the initial weights, order of images, timesteps, noise and samples: an integer from 0 to 2^32 - 1."""
    init_from: str | None = None
    """Start from the weights in this run folder, diffusers folder, .safetensors, .pt, .pth or .bin file."""
    conditional: bool = False
    """Train on the labels of the images, so that samples of a class can be drawn."""
    label_dropout: float = 0.1
    """Probability that a training image counts as one without a label, which classifier-free guidance needs."""

    @property
    def loss_settings(self) -> dict:
        """The settings of the loss, as arguments of an objective's `loss`."""
        return {name: getattr(self, name) for name in LOSS_SETTINGS}

    def check(self) -> None:
        """Raise UserError that names the first wrong field."""
        check_types(self)
        for name in ("epochs", "batch_size", "accumulate", "max_skipped"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, "expected at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"expected a divisor of the batch size, {self.batch_size}",
        )
        require_one_of("optimizer", self.optimizer, Literal["adam", "adamw"])
        require_one_of("lr_schedule", self.lr_schedule, LRSchedule)
        require_one_of("precision", self.precision, Precision)
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "expected 0 or more")
        require(
            self.weight_decay == 0 or self.optimizer == "adamw",
            "weight_decay",
            self.weight_decay,
            "only adamw has weight_decay (--optimizer adamw)",
        )
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "expected more than 0")
        if self.lr_schedule != "constant":
            require(
                0 <= self.min_learning_rate <= self.learning_rate,
                "min_learning_rate",
                self.min_learning_rate,
                f"expected 0 to the learning rate, {self.learning_rate}",
            )
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "expected 0 or more")
        for name in ("clip_norm", "min_snr_gamma", "p2_gamma"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "expected more than 0")
        for name in ("p2_k", "huber_delta"):
            require(getattr(self, name) > 0, name, getattr(self, name), "expected more than 0")
        both = self.min_snr_gamma is not None and self.p2_gamma is not None
        require(not both, "p2_gamma", self.p2_gamma, "expected one kind of loss weights; min_snr_gamma is given, too")
        require_one_of("loss_kind", self.loss_kind, LossKind)
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "expected 0 to below 1, such as 0.9999")
        for width in self.power_ema_widths:
            check_width("power_ema_widths", width)
        widths = self.power_ema_widths
        require(widths[0] < widths[1], "power_ema_widths", widths, "expected two widths, the smaller one first")
        require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"expected an integer from 0 to {MAX_SEED}")
        require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "expected 0 to below 1, such as 0.1")


@dataclass(frozen=True)
class OutputConfig:
    """What a run writes, and how often."""

    __pydantic_config__ = STRICT

    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    validate_every: int = 0
    """Steps between validations. 0: one epoch, or, if it is short, the fewest epochs that have at least 500 steps."""
    checkpoint_every: int = 0
    """Steps between checkpoints. 0: as for validations, but less often if saving would take over 10% of the run."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep the checkpoints whose step is a multiple of this. 0: none."""
    keep_best: bool = False
    """Also keep the checkpoint with the best validation loss. Export its weights and draw the final samples with it."""
    sample_every: int = 0
    """Steps between sample grids during training, drawn with few sampling steps. 0: samples only at the end."""
    sample_every_epochs: int = 0
    """Epochs between further sample grids. 0: none."""
    evaluate_every: int = 0
    """Steps between evaluations (FID, KID, precision and recall) of samples against the training images. 0: none."""
    evaluate_images: int = 1000
    """Samples that an evaluation draws."""
    evaluate_steps: int = 50
    """Sampler steps of an evaluation's samples. They are drawn with the run's sampler, or with ddim if that is ddpm."""
    evaluate_features: str | None = None
    """Features of an evaluation: classifier, pixels or inception:FILE. Default: classifier if there are labels, else
    pixels."""
    power_ema_every: int = 0
    """For --power-ema: steps between snapshots of the averages. 0: as many as give at most 32 snapshots in the run."""
    num_samples: int = 64
    """Maximum number of images in a sample grid. Fewer are drawn if the network is slow."""
    gif_frames: int = 0
    """Frames of a GIF that shows the final samples from noise to image. 0: no GIF."""
    tensorboard: bool = True
    """Write for TensorBoard if --tracker has it. --no-tensorboard is short for leaving it out there."""
    tracker: tuple[Tracker, ...] = ("tensorboard",)
    """Where metrics and sample grids go besides the run's folder: tensorboard (files in the folder), wandb (Weights &
    Biases) or trackio, several of them, or none."""

    def __post_init__(self) -> None:
        if isinstance(self.tracker, str):
            object.__setattr__(self, "tracker", (self.tracker,))

    def check(self) -> None:
        """Raise UserError that names the first wrong field."""
        check_types(self)
        for name in ("log_every", "keep_checkpoints", "num_samples"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")
        intervals = ("validate_every", "checkpoint_every", "keep_every", "sample_every", "sample_every_epochs")
        for name in (*intervals, "evaluate_every", "power_ema_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "expected 0 or more")
        require(self.evaluate_images >= 2, "evaluate_images", self.evaluate_images, "expected at least 2")
        require(self.evaluate_steps >= 1, "evaluate_steps", self.evaluate_steps, "expected at least 1")
        features, kinds = self.evaluate_features, "expected classifier, pixels or inception:FILE"
        known = features is None or features in ("classifier", "pixels") or features.startswith("inception")
        require(known, "evaluate_features", features, kinds)
        for name in self.tracker:
            require_one_of("tracker", name, Tracker)
        alone = "none" not in self.tracker or len(self.tracker) == 1
        require(alone, "tracker", " ".join(self.tracker), "expected none alone, or names of trackers")
        require(self.gif_frames == 0 or self.gif_frames >= 2, "gif_frames", self.gif_frames, "expected 0 or at least 2")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a training run."""

    __pydantic_config__ = STRICT

    preset: str = "digits"
    """Name of the preset that the other settings start from. Default: digits for --dataset digits, else conv_block."""
    data: DataConfig = DataConfig()
    network: NetworkConfig = field(default_factory=ConvBlockConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampling: SamplerConfig = field(default_factory=SamplerConfig)
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()

    def __repr__(self) -> str:
        """What makes it again: "preset('tiny', steps=10)"; the whole fields if no preset has this name."""
        from jax_ddpm.spec.presets import PRESETS, preset  # which imports this module

        parts = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "preset"}
        if self.preset not in PRESETS:
            return f"RunConfig(preset={self.preset!r}, {', '.join(f'{name}={part!r}' for name, part in parts.items())})"
        usual, words = preset(self.preset), [repr(self.preset)]
        for name, part in parts.items():
            if type(part) is not type(getattr(usual, name)):
                words.append(f"{name}={part!r}")
                continue
            for each in fields(part):
                value = getattr(part, each.name)
                if value != getattr(getattr(usual, name), each.name):
                    words.append(f"{each.name}={value!r}")
        return f"preset({', '.join(words)})"

    def with_(self, **settings: Any) -> "RunConfig":
        """A copy with other values, by their names on the command line: `with_(steps=100, batch_size=32)`.

        Names of whole parts are taken too: `with_(network=StridedConfig())`.

        Raises:
            UserError: an unknown name, or a value of another type.
        """
        changed = with_settings(self, settings)
        return changed if {"sampler", "spacing", "sampling"} & set(settings) else changed.with_fitting_sampler()

    def with_fitting_sampler(self) -> "RunConfig":
        """A copy with one of the `SOLVERS` and no spacing of timesteps, if the objective has no timesteps."""
        sampling = self.sampling
        if not self.diffusion.is_continuous:
            return self
        name = sampling.sampler if sampling.sampler in SOLVERS else default_sampler(self.diffusion).sampler
        return replace(self, sampling=replace(sampling, sampler=name, spacing=SamplerConfig.spacing))

    def check(self) -> None:
        """Raise UserError that names the first wrong field."""
        for part in (self.data, self.network):
            check_types(part)
        height_and_width(self.data.image_size)
        limits, fraction = self.data.value_range, self.data.validation_fraction
        fits = limits is None or limits[0] < limits[1]
        require(fits, "value_range", limits, "expected two numbers, the smaller one first")
        require(fraction is None or 0 <= fraction < 1, "validation_fraction", fraction, "expected 0 to below 1")
        self.network.check(self.data.image_size, self.diffusion.timesteps)
        if self.network.takes_labels and not self.training.conditional:
            raise UserError(f"The network {self.network.name} has classes: add --conditional to train on labels.")
        if self.sampling.guidance != 1 and not self.training.conditional:
            raise UserError(
                f"guidance = {self.sampling.guidance:g}: this run has no labels. Add --conditional, or --guidance 1."
            )
        learned, variance = getattr(self.network, "learned_variance", False), self.diffusion.variance
        if learned:
            expected = "expected learned_range (--variance learned_range), because the network has learned_variance"
        else:
            expected = "expected a network with learned_variance (--learned-variance)"
        require(learned == (variance == "learned_range"), "variance", variance, expected)
        for section in (self.diffusion, self.training, self.output):
            section.check()
        self.diffusion.check_training()
        every = self.output.power_ema_every
        require(every == 0 or self.training.power_ema, "power_ema_every", every, "only for a run with --power-ema")
        check_time(self.network, self.diffusion)
        check_sampler(self.sampling, self.diffusion)


def check_time(network: NetworkConfig, diffusion: DiffusionConfig) -> None:
    """Raise UserError for a network that takes integer timesteps only, if it would get other times."""
    has_table, objective = hasattr(network, "table_rows"), diffusion.objective
    expected = f"expected eps, x0 or v, as the network {network.name} has a table of integer timesteps"
    require(not (diffusion.is_continuous and has_table), "objective", objective, f"{expected} (--objective v)")
    if has_table and diffusion.t_input != "index":
        expected = f"expected index or from_one, as the network {network.name} has a table of integer timesteps"
        require(diffusion.t_input == "from_one", "t_input", diffusion.t_input, expected)
        rows, last = network.table_rows, diffusion.timesteps
        require(rows > last, "table_rows", rows, f"expected at least T + 1 = {last + 1}, as t goes from 1 to T")


def slug(dataset: str) -> str:
    """A data set's name in a folder name: "folder-My_Photos" of "folder:/a/My Photos", "b.npz" of "/a/b.npz"."""
    if dataset.lower().endswith((".zip", ".npz", ".npy")):
        dataset = re.split(r"[/\\:]", dataset)[-1]
    kind, _, path = dataset.partition(":")
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return re.sub(r"[^\w.-]+", "_", f"{kind}-{last}" if last else kind)
