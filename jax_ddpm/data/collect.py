"""Reads many image files into one array."""

import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from jax_ddpm.data.files import ImageFiles
from jax_ddpm.data.pixels import read_image
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line, printable

MAX_NAMED = 3  # largest number of skipped images that a note names


def collect(files: ImageFiles, image_size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read image files, and skip those that cannot be read.

    Args:
        files: the images to read. If `files.channels` is None, the result has 1 channel if all images are gray, else 3.
        image_size: height and width of the result.

    Returns:
        uint8 (N, image_size, image_size, channels), and at most one note: the number and names of skipped images.

    Raises:
        UserError: no image could be read.
    """
    images = np.empty((files.count, image_size, image_size, files.channels or 1), np.uint8)
    count, skipped = 0, []
    bar = tqdm(files.read(), total=files.count, desc=f"reading {files.label}", unit=" images", disable=None)
    for name, file in bar:
        try:
            image = read_image(file, image_size, files.channels)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises nearly any exception for a damaged file
            skipped.append(f"{printable(name)} ({reason(error)})")
            continue
        if image.shape[-1] > images.shape[-1]:
            images = _in_colour(images, count)
        images[count] = image
        count += 1
    if not count:
        raise UserError(
            f"{files.label}: none of its {files.count} images can be read, e.g. {skipped[0]}.\n"
            "Expected undamaged png, jpeg, webp, bmp or gif files: replace them, or give another --dataset."
        )
    return images[:count], _note(skipped, files)


def _in_colour(gray: np.ndarray, count: int) -> np.ndarray:
    """A new array like `gray` with 3 channels, into which the first `count` images are copied."""
    images = np.empty((*gray.shape[:-1], 3), np.uint8)
    images[:count] = gray[:count]
    return images


def _note(skipped: list[str], files: ImageFiles) -> tuple[str, ...]:
    if not skipped:
        return ()
    more = f" and {len(skipped) - MAX_NAMED} more" if len(skipped) > MAX_NAMED else ""
    return (f"{len(skipped)} of {files.count} images skipped: {', '.join(skipped[:MAX_NAMED])}{more}",)


def reason(error: Exception) -> str:
    """Why an image could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error, 100)
