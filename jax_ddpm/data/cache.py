"""Decoded images on disk, so that a data set is decoded once.

An entry is two files: `<key>.npy`, training images and then validation images in one array, and `<key>.json`, where the
one ends and the other begins, and the notes. Each is written beside its place and moved there, the second last.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_ddpm.spec.files import atomic_path, write_text


@dataclass(frozen=True)
class Decoded:
    """What is kept: images as in `ImageData`, and the notes that came up while they were decoded."""

    train: np.ndarray
    validation: np.ndarray
    notes: tuple[str, ...]


def entry(cache_dir: Path, label: str, key: object) -> Path:
    """The path of an entry's `.npy`.

    Args:
        cache_dir: folder of the cache.
        label: for people; anything.
        key: everything that shapes the arrays, as JSON can hold it.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_dir / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', label)[-40:].strip('-')}-{digest}.npy"


def read(path: Path) -> Decoded | None:
    """An entry as read-only memory maps, or None if it is absent, cut short or damaged."""
    try:
        about = json.loads(path.with_suffix(".json").read_text("utf-8"))
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if (
            images.dtype != np.uint8
            or list(images.shape) != about["shape"]
            or not images.flags.c_contiguous
            or path.stat().st_size != images.offset + images.nbytes
        ):
            return None
        num_train = about["num_train"]
        return Decoded(images[:num_train], images[num_train:], tuple(about["notes"]))
    except Exception:  # whatever is wrong with an entry, the remedy is to decode again
        return None


def write(path: Path, decoded: Decoded) -> None:
    """Keep an entry; other processes see all of it or nothing.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full.
    """
    num_train = len(decoded.train)
    shape = (num_train + len(decoded.validation), *decoded.train.shape[1:])
    about = {"shape": shape, "num_train": num_train, "notes": decoded.notes}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft, open(draft, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for images in (decoded.train, decoded.validation):
            if images.size:
                file.write(np.ascontiguousarray(images).data)
    write_text(path.with_suffix(".json"), json.dumps(about))
