"""Many image files into one array."""

import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from jax_ddpm.data.files import Files
from jax_ddpm.data.pixels import read_image
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line, printable

NAMED = 3  # skipped images that a note names


def collect(files: Files, image_size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read image files, leaving out those that cannot be read.

    Args:
        files: which; if it leaves the channels open, they are 1 if every image is gray, else 3.
        image_size: height and width of the result.

    Returns:
        uint8 (N, image_size, image_size, channels), and at most one line that counts and names what was left out.

    Raises:
        UserError: not one image could be read.
    """
    images = np.empty((files.count, image_size, image_size, files.channels or 1), np.uint8)
    kept, broken = 0, []
    bar = tqdm(files.read(), total=files.count, desc=f"reading {files.label}", unit=" images", disable=None)
    for name, file in bar:
        try:
            image = read_image(file, image_size, files.channels)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises nearly anything at a damaged file
            broken.append(f"{printable(name)} ({reason(error)})")
            continue
        if image.shape[-1] > images.shape[-1]:
            images = _in_colour(images, kept)
        images[kept] = image
        kept += 1
    if not kept:
        raise UserError(
            f"{files.label}: none of its {files.count} images can be read, e.g. {broken[0]}.\n"
            "Expected sound png, jpeg, webp, bmp or gif files: replace them, or give another --dataset."
        )
    return images[:kept], _note(broken, files)


def _in_colour(gray: np.ndarray, kept: int) -> np.ndarray:
    images = np.empty((*gray.shape[:-1], 3), np.uint8)
    images[:kept] = gray[:kept]
    return images


def _note(broken: list[str], files: Files) -> tuple[str, ...]:
    if not broken:
        return ()
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    return (f"{len(broken)} of {files.count} images skipped: {', '.join(broken[:NAMED])}{more}",)


def reason(error: Exception) -> str:
    """Why an image could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error, 100)
