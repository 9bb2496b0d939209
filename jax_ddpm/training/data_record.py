"""data.json in the folder of a run: which images it is trained on. A resumed run must have the same ones."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.json_text import STRICT, from_json

if TYPE_CHECKING:
    from jax_ddpm.data import ImageData  # its import is slow, and --help needs none of it

DATA_FILE = "data.json"


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

    def describe(self) -> str:
        height, width, channels = self.image_shape
        return (
            f"{self.training_images:,} training and {self.held_out_images:,} held-out images of "
            f"{height}x{width}x{channels}"
        )


def record_of(images: "ImageData") -> DataRecord:
    shape = tuple(map(int, images.train.shape[1:]))
    return DataRecord(images.name, images.fingerprint, len(images.train), len(images.validation), shape)


def read_record(folder: Path) -> DataRecord | None:
    """The record of the run in `folder`, or None if it has none: earlier versions wrote none."""
    path = folder / DATA_FILE
    if not path.exists():
        return None
    return from_json(DataRecord, path.read_text(encoding="utf-8"), str(path))


def write_record(folder: Path, images: "ImageData") -> None:
    """Write data.json for a run that starts now. Raises OSError."""
    write_text(folder / DATA_FILE, json.dumps(asdict(record_of(images)), indent=2) + "\n")


def check_same_images(folder: Path, images: "ImageData", log: Callable[[str], None]) -> None:
    """Check that these are the images that the run in `folder` was trained on.

    Logs a line if they have another name than before, or if the run has no record. Raises UserError for other images.
    """
    old, new = read_record(folder), record_of(images)
    if old is None:
        log(f"{folder} has no {DATA_FILE}, as a run of an earlier version: its images are taken to be the same as now.")
        return
    if old.fingerprint == new.fingerprint:
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
