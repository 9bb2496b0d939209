"""Descriptions of a source of images, before any image is decoded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO

File = str | PathLike | BinaryIO


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images in a fixed order: `read` yields `count` pairs of a name (for messages) and a path or open file."""

    label: str
    count: int
    channels: int | None  # 1 or 3; None: the channels of each image
    read: Callable[[], Iterable[tuple[str, File]]]


@dataclass(frozen=True)
class Source:
    """A data set: its training images, its own validation images if it has any, and notes for the user.

    Sources with equal fingerprints (any values that JSON can hold) hold the same images.
    """

    train: ImageFiles
    validation: ImageFiles | None
    fingerprint: Any
    notes: tuple[str, ...] = ()
