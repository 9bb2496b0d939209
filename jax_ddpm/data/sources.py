"""`load`: the images of a data set by its name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from jax_ddpm.data import cache
from jax_ddpm.data.collect import collect
from jax_ddpm.data.files import Source
from jax_ddpm.data.folder import open_folder
from jax_ddpm.data.pixels import RULE, square
from jax_ddpm.data.tfds_source import open_tfds
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import cache_dir as user_cache_dir
from jax_ddpm.spec.text import one_line

HELD_OUT = 0.1  # of a data set that brings no validation images
HELD_OUT_FROM = 10  # images; fewer are all needed for training
HELD_OUT_SEED = 20200619  # of no run: every run holds out the same images


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images of one size, and what a person should know about them."""

    name: str
    """As the user gave it."""
    train: np.ndarray
    """uint8 (N, H, W, C), C 1 or 3, C-contiguous; may be a read-only memory map."""
    validation: np.ndarray
    """uint8 (M, H, W, C); M may be 0."""
    notes: tuple[str, ...]
    """One line each."""


def load(
    name: str,
    image_size: int,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    cache_dir: str | None = None,
    validation_fraction: float | None = None,
    log: Callable[[str], None] = print,
) -> ImageData:
    """Load the images of a data set, decoded once and then kept in a cache.

    Args:
        name: `digits` (1,797 handwritten digits that scikit-learn ships), `folder:PATH`, or the name of an image data
            set of tensorflow_datasets, also as `name/config` or `name:version`.
        image_size: height and width; the short side is resized with antialiasing, then the centre cut out.
        data_dir: where tensorflow_datasets keeps its data; its own default if None.
        manual_dir: archives fetched by hand, from which tensorflow_datasets prepares without a network.
        cache_dir: where decoded images are kept; `spec.files.cache_dir()` if None.
        validation_fraction: share of the training images that is held out, in [0, 1). None: the data set's own test
            (else validation) images, or a tenth of the training images where it has neither.
        log: told, in single lines, what takes a while.

    Returns:
        The images; gray ones with one channel, colour with three.

    Raises:
        UserError: a name, path, size or fraction that cannot be used, or data that cannot be had or read.
    """
    if image_size < 1:
        raise UserError(f"image size {image_size}: it has to be at least 1.")
    if validation_fraction is not None and not 0 <= validation_fraction < 1:
        raise UserError(
            f"validation fraction {validation_fraction}: expected a share of the training images, 0 <= share < 1."
        )
    if name == "digits":
        decoded = _split(_digits(image_size), validation_fraction)
        return ImageData(name, decoded.train, decoded.validation, decoded.notes)
    if name.startswith("folder:"):
        source = open_folder(name.removeprefix("folder:"))
    else:
        source = open_tfds(name, data_dir, manual_dir, log)
    if validation_fraction is not None:
        source = dataclasses.replace(source, validation=None)
    decoded, cache_note = _through_cache(source, image_size, validation_fraction, cache_dir, log)
    return ImageData(name, decoded.train, decoded.validation, (*source.notes, *decoded.notes, cache_note))


def _digits(image_size: int) -> np.ndarray:
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    return np.stack([square(Image.fromarray(image), image_size) for image in images])


def _through_cache(
    source: Source, image_size: int, fraction: float | None, cache_dir: str | None, log: Callable[[str], None]
) -> tuple[cache.Decoded, str]:
    folder = Path(cache_dir).expanduser() if cache_dir else user_cache_dir()
    key = {"rule": RULE, "source": source.fingerprint, "size": image_size, "validation": fraction}
    path = cache.entry(folder, f"{source.train.label}-{image_size}", key)
    cached = cache.read(path)
    if cached is not None:
        return cached, f"read from the cache, {path}"
    if path.exists():
        log(f"{path} is damaged: decoding the images again")
    decoded = _decode(source, image_size, fraction, log)
    try:
        cache.write(path, decoded)
    except OSError as error:
        return decoded, f"not cached: {folder} cannot be written ({error.strerror or one_line(error)})"
    return cache.read(path) or decoded, f"cached in {path}"


def _decode(source: Source, image_size: int, fraction: float | None, log: Callable[[str], None]) -> cache.Decoded:
    count = source.train.count + (source.validation.count if source.validation else 0)
    log(f"{source.train.label}: reading {count:,} images")
    images, notes = collect(source.train, image_size)
    if source.validation is None:
        decoded = _split(images, fraction)
        return dataclasses.replace(decoded, notes=(*notes, *decoded.notes))
    validation, more_notes = collect(source.validation, image_size)
    channels = max(images.shape[-1], validation.shape[-1])
    images, validation = (
        np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:-1], channels))) for array in (images, validation)
    )
    note = f"validation: {len(validation):,} images, the data set's own ({source.validation.label})"
    return cache.Decoded(images, validation, (*notes, *more_notes, note))


def _split(images: np.ndarray, fraction: float | None) -> cache.Decoded:
    """Hold out validation images, the same ones whatever the seed of a run; both parts keep their order."""
    count = len(images)
    if fraction == 0:
        return cache.Decoded(images, images[:0], ("validation: none",))
    if count < 2 or (fraction is None and count < HELD_OUT_FROM):
        return cache.Decoded(images, images[:0], (f"validation: none, {count} images are too few",))
    num_held_out = min(max(1, round(count * (HELD_OUT if fraction is None else fraction))), count - 1)
    held_out = np.zeros(count, bool)
    held_out[np.random.default_rng(HELD_OUT_SEED).permutation(count)[:num_held_out]] = True
    note = f"validation: {num_held_out:,} of {count:,} images held out, the same ones in every run"
    return cache.Decoded(images[~held_out], images[held_out], (note,))
