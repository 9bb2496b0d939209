"""Descriptions of a source of images, before any image is decoded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from jax_ddpm.spec.image_size import ImageSize

File = str | PathLike | BinaryIO | Callable[[], BinaryIO]
MAX_NAMED = 3  # largest number of skipped images that a note names


class Item(NamedTuple):
    """An encoded image: its name (for messages), its file, and its class if it has one."""

    name: str
    file: File
    label: int | None = None


@dataclass
class Facts:
    """What happened to a number of images of a source while they were decoded. All values are those of JSON."""

    covered: int = 0
    """Images of the source, the skipped ones included."""
    skipped: int = 0
    """Images that could not be read."""
    examples: list[str] = field(default_factory=list)
    """Names of the first skipped images, and why."""
    deep: int = 0
    """Images with more than 8 bits per channel."""
    several_frames: int = 0
    """Animations, and files of several pages."""
    value_range: list[float] | None = None
    """The values that became black and white, if there are deep images."""

    def __add__(self, other: "Facts") -> "Facts":
        return Facts(
            self.covered + other.covered,
            self.skipped + other.skipped,
            [*self.examples, *other.examples][:MAX_NAMED],
            self.deep + other.deep,
            self.several_frames + other.several_frames,
            self.value_range or other.value_range,
        )


@dataclass
class Block:
    """Decoded images: the unit in which they are stored."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    labels: np.ndarray | None
    """int32 (N,), or None."""
    facts: Facts


class Part(Protocol):
    """The training images or the validation images of a source."""

    label: str
    count: int

    def blocks(self, image_size: ImageSize, value_range: tuple[float, float] | None, done: int) -> Iterator[Block]:
        """The decoded images, in order, without the first `done` blocks."""

    def value_range(self) -> tuple[float, float] | None:
        """Smallest and largest value of the images with more than 8 bits per channel; None if there are none."""


@dataclass(frozen=True)
class Source:
    """A data set: its training images, its own validation images if it has any, and notes for the user.

    Sources with equal keys (any values that JSON can hold) hold the same images.
    """

    train: Part
    validation: Part | None
    key: Any
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by name: train, and validation if there are such images."""
        return {"train": self.train} | ({"validation": self.validation} if self.validation else {})
