"""What a source of images says about itself before a single image is decoded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO

File = str | PathLike | BinaryIO


@dataclass(frozen=True)
class Files:
    """Encoded images in a fixed order: `count` pairs of a name, for messages, and a path or open file."""

    label: str
    count: int
    channels: int | None  # 1, 3, or None: as the images are
    read: Callable[[], Iterable[tuple[str, File]]]


@dataclass(frozen=True)
class Source:
    """A data set: training images, validation images if it has its own, and what a person should know about it.

    Sources with equal fingerprints (anything that JSON can hold) hold the same images.
    """

    train: Files
    validation: Files | None
    fingerprint: Any
    notes: tuple[str, ...] = ()
