"""`ImageData`: the images of a data set, with labels if it has them, and a fingerprint of their content."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from jax_ddpm.data.shards import ShardedImages

HASHED_AT_A_TIME = 2**24  # bytes


@dataclass(frozen=True)
class ImageData:
    """A data set, decoded: images of one size, and notes for the user."""

    name: str
    """The name that was given to `load`."""
    train: np.ndarray | ShardedImages
    """Training images, uint8 (N, H, W, C), read-only. Beyond 256 MB, a `ShardedImages` that is read on demand."""
    validation: np.ndarray | ShardedImages
    """Held-out images, uint8 (M, H, W, C), likewise; M may be 0."""
    notes: tuple[str, ...]
    """Notes for the user, one line each."""
    labels: np.ndarray | None = None
    """Class of each training image, int32 (N,), an index of `class_names`; None if the source gives no classes."""
    validation_labels: np.ndarray | None = None
    """Class of each held-out image, int32 (M,); None if the source gives no classes."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes; None if the source gives no classes."""
    fingerprint: str = ""
    """Result of `fingerprint` for these images, which is computed if it is not given."""

    def __post_init__(self):
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", fingerprint(self.train, self.validation))


def fingerprint(train: np.ndarray | ShardedImages, validation: np.ndarray | ShardedImages) -> str:
    """SHA-256 (hex) of the shapes, the dtype and the pixels of the images, the training images first.

    Two data sets have the same fingerprint only if they have the same images in the same order, and hold out the same
    ones. Where the images came from does not matter.

    Args:
        train: uint8 (N, H, W, C); read in small parts.
        validation: uint8 (M, H, W, C), likewise.
    """
    shapes = [list(map(int, images.shape)) for images in (train, validation)]
    digest = hashlib.sha256(json.dumps([shapes, "uint8"]).encode())
    for images in (train, validation):
        step = max(1, HASHED_AT_A_TIME // max(1, int(np.prod(images.shape[1:]))))
        for start in range(0, len(images), step):
            digest.update(np.ascontiguousarray(images[start : start + step], np.uint8).data)
    return digest.hexdigest()
