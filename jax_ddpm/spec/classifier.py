"""A classifier whose features compare sets of images: its settings, and the file that both frameworks read."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
from safetensors.numpy import load_file, save_file

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.json_text import from_json
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.types import StateDict

METADATA_KEY = "jax_ddpm_classifier"
PIXELS_INSTEAD = '--features pixels (in Python: features="pixels")'
VERSION = 1  # of the network, of its training and of the file
FIRST_WIDTH, LARGEST_WIDTH = 32, 64
NUM_FEATURES = 128
SMALLEST_IMAGE = 8  # pixels
REDUCED_FROM = 64  # pixels of the shorter side; such images are reduced to at least half of it
LARGEST_MAP = 8  # pixels of the shorter side of what the first linear layer sees


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of a classifier."""

    image_shape: tuple[int, int, int]
    """Height, width and channels of its images."""
    num_classes: int
    widths: tuple[int, ...]
    """Output channels of its convolutions. Each is followed by max pooling, which halves height and width."""
    reduction: int = 1
    """Images are first reduced by this factor: blocks of reduction x reduction pixels are averaged."""
    num_features: int = NUM_FEATURES

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width after the last pooling."""
        height, width = (size // self.reduction >> len(self.widths) for size in self.image_shape[:2])
        return height, width


@dataclass(frozen=True)
class ClassifierInfo:
    """What a file of a classifier says about it."""

    config: ClassifierConfig
    dataset: str
    """Name of the data set that it was trained on."""
    num_train: int
    """Number of its training images."""
    num_held_out: int
    """Number of the labelled images that it was tested on."""
    accuracy: float | None
    """Share of these that it classifies correctly, in [0, 1]; None if there are none."""
    version: int = VERSION


def config_for(image_shape: tuple[int, int, int], num_classes: int) -> ClassifierConfig:
    """Settings for images (H, W, C). There are two convolutions, and more for larger images.

    Raises UserError for images with fewer than SMALLEST_IMAGE pixels on a side.
    """
    height, width, channels = map(int, image_shape)
    shorter = min(height, width)
    if shorter < SMALLEST_IMAGE:
        raise UserError(
            f"The classifier needs images of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels, not {height}x{width}.\n"
            f"Use {PIXELS_INSTEAD}."
        )
    reduction = 2 * shorter // REDUCED_FROM if shorter >= REDUCED_FROM else 1
    count = 2
    while shorter // reduction >> count > LARGEST_MAP:
        count += 1
    widths = tuple(min(FIRST_WIDTH << number, LARGEST_WIDTH) for number in range(count))
    return ClassifierConfig((height, width, channels), num_classes, widths, reduction)


def write_classifier(path: str | os.PathLike, values: StateDict, info: ClassifierInfo) -> None:
    """Write a classifier, atomically: arrays by PyTorch name, and the metadata. Raises OSError."""
    with atomic_path(path) as draft:
        save_file(values, draft, metadata={METADATA_KEY: json.dumps(asdict(info))})


def read_classifier(path: str | os.PathLike) -> tuple[StateDict, ClassifierInfo]:
    """Read a file of `write_classifier`. Raises UserError if it is not one, or is damaged."""
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            raise UserError(f"{path} is not a classifier: expected a file of the cache's folder `classifiers`.")
        return load_file(path), from_json(ClassifierInfo, text, str(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}).") from None
