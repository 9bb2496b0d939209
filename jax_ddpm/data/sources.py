"""`load`: the images of a data set, by its name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from jax_ddpm.data import cache
from jax_ddpm.data.collect import collect
from jax_ddpm.data.files import Source
from jax_ddpm.data.folder import open_folder
from jax_ddpm.data.image_data import ImageData
from jax_ddpm.data.pixels import PREPROCESSING_VERSION, resize_and_crop
from jax_ddpm.data.tfds_source import open_tfds
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import cache_dir as user_cache_dir
from jax_ddpm.spec.text import one_line

DEFAULT_VALIDATION_FRACTION = 0.1  # if the data set has no validation images of its own
MIN_IMAGES_TO_SPLIT = 10  # fewer are all used for training, unless the user gives a fraction
SPLIT_SEED = 20200619  # independent of the run's seed, so that every run holds out the same images


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
    """Load the images of a data set. They are decoded once and then read from a cache on disk.

    Args:
        name: `digits` (1,797 handwritten digits of scikit-learn), `folder:PATH`, or the name of an image data set of
            tensorflow_datasets, also as `name/config` or `name:version`.
        image_size: height and width of the result. The short side is resized to it, then the centre is cut out.
        data_dir: the data folder of tensorflow_datasets; its default if None.
        manual_dir: a folder of archives downloaded by hand, from which tensorflow_datasets prepares without a network.
        cache_dir: the folder for decoded images; if None, `$XDG_CACHE_HOME/jax_ddpm` or `~/.cache/jax_ddpm`.
        validation_fraction: fraction of the training images to hold out, in [0, 1). None: the data set's own test
            split, else its validation split, else a tenth of the training images.
        log: called with a line of text before each long operation.

    Returns:
        The images; C is 1 for a gray data set and 3 for one in colour.

    Raises:
        UserError: a name, path, size or fraction that is not valid, or data that cannot be downloaded or read.
    """
    if image_size < 1:
        raise UserError(f"image size {image_size}: expected at least 1.")
    if validation_fraction is not None and not 0 <= validation_fraction < 1:
        raise UserError(
            f"validation fraction {validation_fraction}: expected a fraction of the training images, 0 to below 1."
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
    notes = (*source.notes, *decoded.notes, cache_note)
    return ImageData(name, decoded.train, decoded.validation, notes, fingerprint=decoded.fingerprint)


def _digits(image_size: int) -> np.ndarray:
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    return np.stack([resize_and_crop(Image.fromarray(image), image_size) for image in images])


def _through_cache(
    source: Source, image_size: int, fraction: float | None, cache_dir: str | None, log: Callable[[str], None]
) -> tuple[cache.Decoded, str]:
    folder = Path(cache_dir).expanduser() if cache_dir else user_cache_dir()
    key = {"rule": PREPROCESSING_VERSION, "source": source.fingerprint, "size": image_size, "validation": fraction}
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
    """Hold out validation images, the same ones in every run. Both parts keep the order of the images."""
    count = len(images)
    if fraction == 0:
        return cache.Decoded(images, images[:0], ("validation: none",))
    if count < 2 or (fraction is None and count < MIN_IMAGES_TO_SPLIT):
        return cache.Decoded(images, images[:0], (f"validation: none, {count} images are too few",))
    fraction = DEFAULT_VALIDATION_FRACTION if fraction is None else fraction
    num_held_out = min(max(1, round(count * fraction)), count - 1)
    held_out = np.zeros(count, bool)
    held_out[np.random.default_rng(SPLIT_SEED).permutation(count)[:num_held_out]] = True
    note = f"validation: {num_held_out:,} of {count:,} images held out, the same ones in every run"
    return cache.Decoded(images[~held_out], images[held_out], (note,))
