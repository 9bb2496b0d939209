"""Settings of a run: frozen dataclasses, their checks, JSON in and out. Imports neither jax nor torch.

A run's flags are these fields (`scripts/train_jax.py --help`), its `config.json` is a `RunConfig`, and the metadata of
its `model.safetensors` is a `ModelInfo`.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Literal, get_args

import tyro

from jax_ddpm.errors import UserError

Schedule = Literal["linear", "cosine", "sigmoid"]
Objective = Literal["eps", "x0", "v"]
Variance = Literal["beta", "posterior"]
Clip = Literal["x0", "state", "none"]
Precision = Literal["float32", "bfloat16", "float64"]

MAX_SEED = 2**32 - 1
FORMAT_VERSION = 1  # of model.safetensors' metadata
STRICT = {"extra": "forbid"}  # pydantic: an unknown field in a JSON file is an error


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
class ConvBlockConfig:
    """Arguments of `conv_block`, the ConvBlock UNet."""

    __pydantic_config__ = STRICT

    name: tyro.conf.Suppress[Literal["conv_block"]] = "conv_block"
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels per level, each twice the one before; a level halves height and width."""
    time_width: int = 256
    """Width of the time embedding."""

    def check(self, image_size: int | None = None) -> None:
        """UserError that names the wrong field, or the sizes that these widths can take."""
        require(len(self.widths) >= 1, "widths", self.widths, "expected at least one")
        for width in self.widths:
            require(
                width > 0 and width % 32 == 0,
                "widths",
                self.widths,
                f"GroupNorm's 32 groups cannot divide {width} channels; expected multiples of 32, such as 32 64 128",
            )
        doubled = all(b == 2 * a for a, b in zip(self.widths, self.widths[1:], strict=False))
        require(doubled, "widths", self.widths, "each width must be twice the one before, such as 64 128 256")
        require(
            self.time_width > 0 and self.time_width % 2 == 0, "time_width", self.time_width, "expected an even number"
        )
        multiple = 2 ** (len(self.widths) - 1)
        if image_size is not None and (image_size < multiple or image_size % multiple):
            below = image_size // multiple * multiple
            near = [size for size in (below, below + multiple) if size > 0]
            raise UserError(
                f"image_size = {image_size}: a network of {len(self.widths)} levels halves the image "
                f"{len(self.widths) - 1} times, so its size must be a multiple of {multiple}.\n"
                f"Nearest: --image-size {' or '.join(map(str, near))}; or fewer --widths."
            )


NetworkConfig = ConvBlockConfig
NETWORKS: dict[str, type] = {"conv_block": ConvBlockConfig}


@dataclass(frozen=True)
class DiffusionConfig:
    __pydantic_config__ = STRICT

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
    """Variance of a reverse step: beta_t, or the posterior's."""
    clip: Clip = "x0"
    """While sampling: clip the predicted x_0 to [-1, 1]; clamp every x_t (state); or neither (none)."""

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
    optimizer: Literal["adam", "adamw"] = "adam"
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
    precision: Precision = "float32"
    """Of the network's activations; parameters, EMA and loss stay float32 (float64: everything, for comparisons)."""
    seed: int = 0
    """Decides the initial weights, the order of the images, timesteps, noise and the sampled pictures."""
    init_from: str | None = None
    """Start from the weights of this run folder, .safetensors, .pt or .pth."""

    def check(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, "expected at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"must divide the batch size, {self.batch_size}",
        )
        one_of("optimizer", self.optimizer, Literal["adam", "adamw"])
        one_of("lr_schedule", self.lr_schedule, Literal["cosine", "constant"])
        one_of("precision", self.precision, Precision)
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
    """Steps between checkpoints; 0: after every epoch, or after as many as make 500 steps."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    sample_every: int = 0
    """Steps between sample grids during the training; 0: only the closing pictures."""
    num_samples: int = 64
    """Images of a sample grid, at most; fewer where the network is slow."""

    def check(self) -> None:
        for name in ("log_every", "keep_checkpoints", "num_samples"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")
        for name in ("validate_every", "checkpoint_every", "sample_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "expected 0 or more")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    __pydantic_config__ = STRICT

    preset: str = "digits"
    """Recipe that the other flags start from: digits, tiny, conv_block. Default: digits for digits, else conv_block."""
    data: DataConfig = DataConfig()
    network: NetworkConfig = ConvBlockConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()

    def check(self) -> None:
        """UserError that names the first wrong field."""
        size = self.data.image_size
        require(size >= 1, "image_size", size, "expected at least 1")
        fraction = self.data.validation_fraction
        require(fraction is None or 0 <= fraction < 1, "validation_fraction", fraction, "expected 0 to below 1")
        self.network.check(size)
        for section in (self.diffusion, self.training, self.output):
            section.check()


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


def preset(name: str | None = None, dataset: str = "digits") -> RunConfig:
    """The recipe `name` on a data set; None takes `digits` for the digits and `conv_block` for all else.

    Raises UserError for an unknown name.
    """
    name = name or ("digits" if dataset == "digits" else "conv_block")
    recipe = PRESETS.get(name)
    if recipe is None:
        raise UserError(f"Unknown preset '{name}': expected one of {', '.join(PRESETS)}.")
    image_size = 8 if dataset == "digits" and name != "conv_block" else recipe.data.image_size
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, dataset=dataset, image_size=image_size))


PRESETS: dict[str, RunConfig] = {
    # Real 8x8 digits, readable after a minute or two on two cores.
    "digits": RunConfig(
        preset="digits",
        data=DataConfig(image_size=8),
        network=ConvBlockConfig(widths=(32, 64, 128), time_width=128),
        training=TrainingConfig(epochs=60, learning_rate=2e-3, ema_decay=0.999),  # of 25 steps
        output=OutputConfig(validate_every=250),
    ),
    # Any data, on a CPU.
    "tiny": RunConfig(
        preset="tiny",
        data=DataConfig(image_size=16),
        network=ConvBlockConfig(widths=(32, 64, 128), time_width=128),
        training=TrainingConfig(epochs=5, learning_rate=1e-3, ema_decay=0.999),
    ),
    # The full-size ConvBlock UNet and its published recipe.
    "conv_block": RunConfig(
        preset="conv_block",
        training=TrainingConfig(epochs=1000),
        output=OutputConfig(sample_every=10_000),
    ),
}


def require(condition: bool, name: str, value, expected: str) -> None:
    if not condition:
        raise UserError(f"{name} = {value}: {expected}.")


def one_of(name: str, value, choices) -> None:
    require(value in get_args(choices), name, value, f"expected one of {', '.join(get_args(choices))}")


def slug(dataset: str) -> str:
    """A data set's name as part of a folder's name: folder:/a/My Photos becomes folder-My_Photos."""
    kind, _, path = dataset.partition(":")
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return re.sub(r"[^\w.-]+", "_", f"{kind}-{last}" if last else kind)


def to_json(config) -> str:
    """A config dataclass as JSON text; `from_json` gives the equal object back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(cls: type, text: str, source: str):
    """An object of a config dataclass from JSON text; `source` is named in errors.

    Raises UserError that names the missing, unknown or mistyped fields.
    """
    import pydantic

    try:
        return pydantic.TypeAdapter(cls).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors()]
        raise UserError(f"{source} is not a valid {cls.__name__}: {'; '.join(faults[:5])}.") from None
