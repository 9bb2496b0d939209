"""`load`: the images of a data set, by its name. `from_arrays`: images that are given as arrays."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.data.array_files import open_array_file
from jax_ddpm.data.arrays import array_source
from jax_ddpm.data.files import Source
from jax_ddpm.data.folder import open_folder
from jax_ddpm.data.image_data import ImageData
from jax_ddpm.data.levels import Range
from jax_ddpm.data.tfds_source import open_tfds
from jax_ddpm.data.through_cache import image_data
from jax_ddpm.data.zip_file import open_zip
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.files import cache_dir as user_cache_dir
from jax_ddpm.spec.image_size import ImageSize, height_and_width, shortest
from jax_ddpm.spec.text import printable

ARRAYS = "arrays"  # the name of a data set that is given as arrays


def load(
    name: str,
    image_size: ImageSize,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    cache_dir: str | None = None,
    validation_fraction: float | None = None,
    value_range: Range | None = None,
    log: Callable[[str], None] = print,
) -> ImageData:
    """Load the images of a data set. They are decoded once and then read from a cache on disk.

    Args:
        name: `digits` (1,797 handwritten digits of scikit-learn), `folder:PATH`, the path of a .zip file of pictures or
            of a .npz or .npy file of arrays, or the name of an image data set of tensorflow_datasets, also as
            `name/config` or `name:version`.
        image_size: height and width of the result; an integer if they are equal. Each image is resized so that it
            covers this size, then the centre is cut out.
        data_dir: the data folder of tensorflow_datasets; its default if None.
        manual_dir: a folder of archives downloaded by hand, from which tensorflow_datasets prepares without a network.
        cache_dir: the folder for decoded images; if None, `$XDG_CACHE_HOME/jax_ddpm` or `~/.cache/jax_ddpm`.
        validation_fraction: fraction of the training images to hold out, in [0, 1). None: the data set's own
            validation images, else a tenth of the training images.
        value_range: the values that become black and white, for images with more than 8 bits per channel and for
            arrays. None: the smallest and the largest value of the data set; arrays: see `from_arrays`.
        log: called with a line of text before each long operation.

    Returns:
        The images. C is 1 for gray pictures and 3 if some are in colour; 1 to 16 for arrays.

    Raises:
        UserError: a name, path, size, fraction or range that is not valid, data that cannot be downloaded or read, or
            too little memory or disk space.
    """
    if isinstance(image_size, int) and image_size < 1:
        raise UserError(f"image size {image_size}: expected at least 1.")
    _check(validation_fraction, value_range)
    folder = Path(cache_dir).expanduser() if cache_dir else user_cache_dir()
    try:
        source = _open(name, data_dir, manual_dir, value_range, log)
        return image_data(name, source, shortest(image_size), value_range, validation_fraction, folder, log)
    except MemoryError:
        raise _no_memory(printable(name)) from None


def from_arrays(
    images: Any,
    labels: Any = None,
    *,
    validation_images: Any = None,
    validation_labels: Any = None,
    class_names: Sequence[str] | None = None,
    image_size: ImageSize | None = None,
    value_range: Range | None = None,
    validation_fraction: float | None = None,
    log: Callable[[str], None] = print,
) -> ImageData:
    """Images that are given as arrays of NumPy, PyTorch or JAX.

    Args:
        images: (N, H, W) or (N, H, W, C) with 1 to 16 channels; (N, C, H, W) where the shape, or a tensor of PyTorch,
            tells. uint8 is taken as it is. Other numbers are scaled to 256 levels: see `value_range`.
        labels: class of each image, integers or texts (N,).
        validation_images: held-out images, likewise. None: some of the images are held out.
        validation_labels: class of each held-out image.
        class_names: names of the classes 0, 1, ...
        image_size: height and width of the result; that of the arrays if None.
        value_range: the values that become black and white. None: 0 and 1 or -1 and 1 if all values are between them,
            0 and 255 for integers between them, the smallest and the largest value for other integers.
        validation_fraction: as in `load`.
        log: called with a line of text before each long operation.

    Raises:
        UserError: arrays that are not images, floats whose range is not clear, or labels that do not fit.
    """
    _check(validation_fraction, value_range)
    try:
        source = array_source(
            images, labels, validation_images, validation_labels, class_names, value_range, name=ARRAYS
        )
        size = shortest(image_size or source.train.images.shape[1:3])
        height_and_width(size)
        return image_data(ARRAYS, source, size, value_range, validation_fraction, user_cache_dir(), log)
    except MemoryError:
        raise _no_memory(ARRAYS) from None


def _open(
    name: str, data_dir: str | None, manual_dir: str | None, value_range: Range | None, log: Callable[[str], None]
) -> Source:
    path = name.removeprefix("folder:")
    if name == "digits":
        return _digits()
    if name == ARRAYS:
        raise UserError(
            "The images of this run were given from Python.\n"
            "Give them again: jax_ddpm.train(config, folder, resume=True, images=...)."
        )
    if path.lower().endswith(".zip") and not Path(path).expanduser().is_dir():
        return open_zip(path)
    if re.search(r"\.np[yz]$", path, re.IGNORECASE) and not Path(path).expanduser().is_dir():
        return open_array_file(path, value_range)
    if name.startswith("folder:"):
        return open_folder(path)
    return open_tfds(name, data_dir, manual_dir, log)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return dataclasses.replace(array_source(images, digits.target, name="digits"), notes=())


def _check(validation_fraction: float | None, value_range: Range | None) -> None:
    if validation_fraction is not None and not 0 <= validation_fraction < 1:
        raise UserError(
            f"validation fraction {validation_fraction}: expected a fraction of the training images, 0 to below 1."
        )
    fits = value_range is None or (
        len(value_range) == 2 and np.isfinite(value_range).all() and value_range[0] < value_range[1]
    )
    require(fits, "value_range", value_range, "expected two numbers, the smaller one first")


def _no_memory(name: str) -> UserError:
    return UserError(
        f"{name}: there is not enough memory to read its images.\n"
        "Close other programs, or choose a smaller --image-size or a smaller data set."
    )
