"""data.json in the folder of a run: which images it is trained on. A resumed run must have the same ones."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.json_text import STRICT, from_json

DATA_FILE = "data.json"


class Images(Protocol):
    """What is read off a `jax_ddpm.data.ImageData`."""

    name: str
    fingerprint: str
    train: Any
    validation: Any
    labels: Any
    validation_labels: Any
    class_names: tuple[str, ...] | None


@dataclass(frozen=True)
class DataRecord:
    """What identifies the images of a run. The content decides, not where the images are."""

    __pydantic_config__ = STRICT

    dataset: str
    """The name that was given for them at the last start."""
    fingerprint: str
    """`ImageData.fingerprint`: of the pixels of all images, in their order."""
    training_images: int
    held_out_images: int
    image_shape: tuple[int, int, int]
    """(H, W, C)."""
    place: str | None = None
    """The absolute path that the name led to, for images of a folder or file."""
    labels: str | None = None
    """`labels_fingerprint`; None without labels, or if a run of an earlier version did not record it."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, likewise."""

    def describe(self) -> str:
        height, width, channels = self.image_shape
        return (
            f"{self.training_images:,} training and {self.held_out_images:,} held-out images of "
            f"{height}x{width}x{channels}"
        )


def record_of(images: Images) -> DataRecord:
    shape, path = tuple(map(int, images.train.shape[1:])), path_of(images.name)
    place = None if path is None else str(path.absolute())
    counts = len(images.train), len(images.validation)
    labels = labels_fingerprint(images), images.class_names
    return DataRecord(images.name, images.fingerprint, *counts, shape, place, *labels)


def labels_fingerprint(images: Images) -> str | None:
    """SHA-256 (hex) of the labels of all images and the names of the classes; None without labels."""
    if images.labels is None:
        return None
    digest = hashlib.sha256(json.dumps([list(images.class_names or ()), len(images.labels)]).encode())
    for labels in (images.labels, images.validation_labels):
        digest.update(b"" if labels is None else np.ascontiguousarray(labels, np.int32).data)
    return digest.hexdigest()


def path_of(dataset: str) -> Path | None:
    """The path in the name of a data set, or None if it has none."""
    path = dataset.removeprefix("folder:")
    is_path = path != dataset or path.lower().endswith((".zip", ".npz", ".npy"))
    return Path(path).expanduser() if is_path else None


def find_images(folder: Path, dataset: str) -> str:
    """The name of the images of a resumed run, with the absolute path if the relative one leads nowhere from here."""
    record, path = read_record(folder), path_of(dataset)
    if path is None or path.exists() or record is None or record.dataset != dataset or record.place is None:
        return dataset
    kind = "folder:" if dataset.startswith("folder:") else ""
    return f"{kind}{record.place}" if Path(record.place).exists() else dataset


def read_record(folder: Path) -> DataRecord | None:
    """The record of the run in `folder`, or None if it has none: earlier versions wrote none."""
    path = folder / DATA_FILE
    if not path.exists():
        return None
    return from_json(DataRecord, path.read_text(encoding="utf-8"), str(path))


def write_record(folder: Path, images: Images) -> None:
    """Write data.json for a run that starts now. Raises OSError."""
    record = asdict(record_of(images))
    if images.labels is None:
        del record["labels"], record["class_names"]
    write_text(folder / DATA_FILE, json.dumps(record, indent=2) + "\n")


def check_same_images(folder: Path, images: Images, log: Callable[[str], None], with_labels: bool = False) -> None:
    """Check that these are the images that the run in `folder` was trained on. with_labels: and its labels.

    Logs a line if they have another name than before, or if the run has no record. Raises UserError for other images.
    """
    old, new = read_record(folder), record_of(images)
    if old is None:
        log(f"{folder} has no {DATA_FILE}, as a run of an earlier version: its images are taken to be the same as now.")
        return
    if old.fingerprint == new.fingerprint:
        if with_labels and old.labels != new.labels:
            raise UserError(
                f"{new.dataset} holds the images of this run, but their labels or the classes' names have changed.\n"
                "Name the place of the same labels, or start another run with another --out."
            )
        if old.dataset != new.dataset:
            log(f"{new.dataset} holds the same images as {old.dataset} did.")
        return
    changed = f"now has {new.describe()}"
    if old.describe() == new.describe():
        changed = "now has as many, but they are not the same, or not in the same order"
    raise UserError(
        f"{new.dataset} does not hold the images of this run, which had {old.describe()}; it {changed}.\n"
        "Name the place of the same images (--dataset), or start another run with another --out."
    )
