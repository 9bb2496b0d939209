"""Decoded images on disk, so that a data set is decoded once.

An entry is two files. `<key>.npy` holds the training images followed by the validation images, in one array.
`<key>.json` holds the shape, the number of training images and the notes. Each is written under a temporary name and
renamed; the .json file comes last.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_ddpm.data.image_data import fingerprint
from jax_ddpm.spec.files import atomic_path, write_text


@dataclass(frozen=True)
class Decoded:
    """The content of an entry: images as in `ImageData`, and the notes made while decoding them."""

    train: np.ndarray
    validation: np.ndarray
    notes: tuple[str, ...]
    fingerprint: str = ""
    """That of `image_data.fingerprint`; empty if it is not computed yet."""


def entry(cache_dir: Path, label: str, key: object) -> Path:
    """The path of an entry's `.npy`.

    Args:
        cache_dir: folder of the cache.
        label: any text; the name of the file begins with it.
        key: everything that the arrays depend on, as a value that JSON can hold.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_dir / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', label)[-40:].strip('-')}-{digest}.npy"


def read(path: Path) -> Decoded | None:
    """An entry as read-only memory maps, or None if it is absent, cut short or damaged."""
    try:
        info = json.loads(path.with_suffix(".json").read_text("utf-8"))
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if (
            images.dtype != np.uint8
            or list(images.shape) != info["shape"]
            or not images.flags.c_contiguous
            or path.stat().st_size != images.offset + images.nbytes
        ):
            return None
        num_train = info["num_train"]
        return Decoded(images[:num_train], images[num_train:], tuple(info["notes"]), info["fingerprint"])
    except Exception:  # a damaged entry is replaced: the caller decodes the images again
        return None


def write(path: Path, decoded: Decoded) -> None:
    """Write an entry. Other processes see all of it or nothing.

    Raises:
        OSError: the folder cannot be created or written, or the disk is full.
    """
    num_train = len(decoded.train)
    shape = (num_train + len(decoded.validation), *decoded.train.shape[1:])
    info = {"shape": shape, "num_train": num_train, "notes": decoded.notes}
    info["fingerprint"] = fingerprint(decoded.train, decoded.validation)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft, open(draft, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for images in (decoded.train, decoded.validation):
            if images.size:
                file.write(np.ascontiguousarray(images).data)
    write_text(path.with_suffix(".json"), json.dumps(info))
