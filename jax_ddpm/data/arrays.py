"""Images that are given as arrays: their layout, the range of their values, their labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_ddpm.data.decode import images_per_block
from jax_ddpm.data.files import Block, Facts, Source
from jax_ddpm.data.levels import Range, scale, usable
from jax_ddpm.data.pixels import resize_array
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.image_size import ImageSize, height_and_width

MAX_CHANNELS = 16
BYTES_AT_A_TIME = 2**26
MAX_CLASSES = 10_000  # larger integers are taken as names


@dataclass(frozen=True)
class ArrayImages:
    """Images of an array (N, H, W, C); may be a memory map."""

    label: str
    images: np.ndarray
    range: Range | None
    """The values that become black and white; None: the array is uint8 and stays as it is."""
    labels: np.ndarray | None
    """Class of each image, int32 (N,)."""

    @property
    def count(self) -> int:
        return len(self.images)

    def is_ready(self, image_size: ImageSize) -> bool:
        """Whether the array can be used as it is."""
        return self.range is None and self.images.shape[1:3] == height_and_width(image_size)

    def blocks(self, image_size: ImageSize, value_range: Range | None, done: int) -> Iterator[Block]:
        """The images as uint8 of one size, in order, without the first `done` blocks."""
        length = images_per_block(image_size, self.images.shape[-1])
        for start in range(done * length, self.count, length):
            stop = min(start + length, self.count)
            images = np.empty((stop - start, *height_and_width(image_size), self.images.shape[-1]), np.uint8)
            for row in range(start, stop):
                images[row - start] = self._converted(row, image_size)
            labels = None if self.labels is None else self.labels[start:stop]
            yield Block(images, labels, Facts(covered=stop - start))

    def _converted(self, row: int, image_size: ImageSize) -> np.ndarray:
        image = self.images[row]
        image = image if self.range is None else scale(image, self.range)
        return image if image.shape[:2] == height_and_width(image_size) else resize_array(image, image_size)

    def value_range(self) -> None:
        """Nothing: `range` is known."""


def array_source(
    images: Any,
    labels: Any = None,
    validation_images: Any = None,
    validation_labels: Any = None,
    class_names: Sequence[str] | None = None,
    value_range: Range | None = None,
    name: str = "arrays",
    key: Any = None,
) -> Source:
    """A source of images that are given as arrays. Arguments as those of `jax_ddpm.data.from_arrays`.

    Raises:
        UserError: arrays that are not images, values whose range is not clear, or labels that do not fit.
    """
    given = [images] if validation_images is None else [images, validation_images]
    arrays, notes = [], []
    for array in given:
        array, layout_notes = _channels_last(array, name)
        arrays.append(array)
        notes += layout_notes
    if len({array.shape[1:] for array in arrays}) > 1:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise UserError(f"{name}: training and validation images have the shapes {shapes}: expected one size for all.")
    limits, range_notes = _limits(arrays, value_range, name)
    given_labels = [labels, validation_labels][: len(arrays)]
    classes, names, class_notes = _classes(given_labels, [len(array) for array in arrays], class_names, name)
    parts = [
        ArrayImages(label, array, limits, classes_of)
        for label, array, classes_of in zip((name, f"validation images of {name}"), arrays, classes, strict=False)
    ]
    notes = dict.fromkeys([*notes, *range_notes, *class_notes])
    return Source(parts[0], parts[1] if len(parts) > 1 else None, key, tuple(notes), names)


def _channels_last(given: Any, name: str) -> tuple[np.ndarray, list[str]]:
    """The array as (N, H, W, C), a view if possible, and notes."""
    is_torch = type(given).__module__.split(".")[0] == "torch"
    if is_torch:
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
        given = given.numpy()
    array = np.asarray(given)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    shape = array.shape
    if array.dtype.kind not in "buif" or array.ndim not in (3, 4) or 0 in shape:
        raise UserError(
            f"{name}: the images are {array.dtype} {shape}.\n"
            "Expected numbers of the shape (N, height, width) or (N, height, width, channels), at least one image."
        )
    if array.ndim == 3:
        if shape[-1] in (1, 3, 4) and shape[-1] < shape[1]:
            raise UserError(
                f"{name}: the shape {shape} is that of one image, or of {shape[0]} images that are {shape[-1]} wide.\n"
                "Expected (N, height, width) or (N, height, width, channels): images[None] makes a batch of one image."
            )
        return array[..., None], []
    first, last = shape[1] <= MAX_CHANNELS, shape[3] <= MAX_CHANNELS
    if first and (is_torch or not last):
        return np.moveaxis(array, 1, -1), [f"{name}: the shape {shape} is read as (N, channels, height, width)"]
    if not last or (first and shape[1] < shape[2] == shape[3]):
        raise UserError(
            f"{name}: the shape {shape} is not clear: expected (N, height, width, channels).\n"
            f"There can be 1 to {MAX_CHANNELS} channels. If they come second, give images.transpose(0, 2, 3, 1)."
        )
    return array, []


def _limits(arrays: list[np.ndarray], given: Range | None, name: str) -> tuple[Range | None, list[str]]:
    """The values that become black and white (None: uint8 as it is), and notes."""
    dtype = arrays[0].dtype
    if dtype == np.uint8 and given is None:
        largest = int(arrays[0][:1000].max())
        dark = f"{name}: the largest value is {largest} of 255, so the images are nearly black"
        return None, [f"{dark} (--value-range 0 {max(1, largest)} would scale them)"] if largest < 16 else []
    low, high = _extremes(arrays)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{name}: there are values that are not finite (nan or inf): expected finite numbers.")
    if given is not None:
        clipped = "; values outside are clipped" if low < given[0] or high > given[1] else ""
        return given, [f"{name}: {given[0]:g} becomes black and {given[1]:g} white{clipped}"]
    found = f"{dtype} values from {low:.6g} to {high:.6g}"
    if low >= -1e-3 and high <= 1 + 1e-3:
        limits = (0.0, 1.0)
    elif dtype.kind == "f" and low >= -1 - 1e-3 and high <= 1 + 1e-3:
        limits = (-1.0, 1.0)
    elif dtype.kind in "iu" and low >= 0:
        limits = (0.0, 255.0) if high <= 255 else usable((low, high))
    else:
        raise UserError(
            f"{name}: {found}: it is not clear which of them are black and white.\n"
            f"Give both, for example --value-range {low:g} {high:g} (in Python: value_range=({low:g}, {high:g}))."
        )
    return limits, [f"{name}: {found}; {limits[0]:g} becomes black and {limits[1]:g} white, in 256 levels"]


def _extremes(arrays: list[np.ndarray]) -> Range:
    """Smallest and largest value; nan if there is one. Reads a part of the images at a time."""
    ranges = []
    for array in arrays:
        step = max(1, BYTES_AT_A_TIME // array[0].nbytes)
        for start in range(0, len(array), step):
            part = array[start : start + step]
            ranges.append((float(part.min()), float(part.max())))
    return float(np.min([low for low, _ in ranges])), float(np.max([high for _, high in ranges]))


def _classes(
    given: list[Any], counts: list[int], class_names: Sequence[str] | None, name: str
) -> tuple[list[np.ndarray | None], tuple[str, ...] | None, list[str]]:
    """Labels of each part as int32 (N,), or None; the names of the classes; notes."""
    arrays = [_label_array(labels, count, name) for labels, count in zip(given, counts, strict=True)]
    known = [labels for labels in arrays if labels is not None]
    if not known:
        return arrays, None, []
    values = np.unique(np.concatenate(known))
    if class_names is not None:
        names = tuple(map(str, class_names))
    elif values.dtype.kind in "iu" and values[0] >= 0 and values[-1] < MAX_CLASSES:
        names = tuple(map(str, range(values[-1] + 1)))
    else:
        names = tuple(map(str, values))
        arrays = [None if labels is None else np.searchsorted(values, labels) for labels in arrays]
        values = np.arange(len(values))
    if values.dtype.kind not in "iu" or values[0] < 0 or values[-1] >= len(names):
        raise UserError(f"{name}: the labels do not fit the {len(names)} class names: expected 0 to {len(names) - 1}.")
    labels = [None if labels is None else labels.astype(np.int32) for labels in arrays]
    return labels, names, [f"{name}: labels of {len(values)} classes"]


def _label_array(labels: Any, count: int, name: str) -> np.ndarray | None:
    """Labels (N,) of integers or texts; None if none are given."""
    if labels is None:
        return None
    if type(labels).__module__.split(".")[0] == "torch":
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.shape != (count,) or labels.dtype.kind not in "iubUS":
        raise UserError(
            f"{name}: the labels are {labels.dtype} {labels.shape}, but there are {count} images.\n"
            f"Expected {count} integers or names; labels.argmax(1) turns one-hot labels into integers."
        )
    return labels.astype(np.int64) if labels.dtype.kind == "b" else labels
