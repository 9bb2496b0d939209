"""Images and masks for editing. They must have the size of the model's images: how to resize is the user's choice."""

import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from jax_ddpm.data.decode import reason
from jax_ddpm.data.folder import list_folder
from jax_ddpm.data.formats import quiet_pillow
from jax_ddpm.data.levels import FULL_RANGE
from jax_ddpm.data.pixels import open_image
from jax_ddpm.spec.errors import UserError, require

Shape = tuple[int, int, int]


def read_images(path: Path, image_shape: Shape, others: str = "the model's images") -> np.ndarray:
    """Read images, uint8 (N, *image_shape), from an image file, a folder, or the array `images` of a .npz file.

    Image files are converted to the channels of the model: colour to gray, or gray to colour. Images with other numbers
    of channels than 1 and 3 come only from a .npz file. others: what has this shape, for messages. Raises UserError for
    files that cannot be read, and for images of another shape.
    """
    if path.suffix == ".npz":
        return _read_npz(path, image_shape)
    if image_shape[2] not in (1, 3):
        raise UserError(
            f"{path}: image files have 1 or 3 channels, but {others} have {image_shape[2]}.\n"
            f"Give a .npz with an array `images`, uint8 (N, {', '.join(map(str, image_shape))})."
        )
    files = [path]
    if path.is_dir():
        root, listing = list_folder(str(path))
        files = [root / name for name in listing.images]
    return np.stack([np.asarray(_open(file, image_shape, others)).reshape(image_shape) for file in files])


def read_mask(path: Path, image_shape: Shape) -> np.ndarray:
    """Read a mask, bool (H, W), from an image file: True where its gray level is 128 or more.

    Raises UserError like `read_images`.
    """
    return np.asarray(_open(path, (*image_shape[:2], 1))) >= 128


def _open(path: Path, image_shape: Shape, others: str = "the model's images") -> Image.Image:
    """An image file in the model's channels. Raises UserError if it cannot be read or has another size."""
    try:
        with quiet_pillow():
            image = open_image(path, image_shape[2], FULL_RANGE).image
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly any exception for a damaged file
        raise UserError(
            f"{path} cannot be read ({reason(error)}).\nExpected an image file, such as png or jpeg."
        ) from None
    height, width, _ = image_shape
    if image.size != (width, height):
        code = f"from PIL import Image; Image.open({str(path)!r}).resize(({width}, {height})).save('resized.png')"
        raise UserError(
            f"{path} has {image.width}x{image.height} pixels, but {others} have {width}x{height}.\n"
            f"Resize it, for example with: python -c {shlex.quote(code)}"
        )
    return image


def _read_npz(path: Path, image_shape: Shape) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
    except Exception as error:  # NumPy raises nearly any exception for a damaged file
        raise UserError(
            f"{path} cannot be read ({reason(error)}).\nExpected a .npz with an array `images`, uint8 (N, H, W, C)."
        ) from None
    expected = f"expected uint8 images, (N, {', '.join(map(str, image_shape))})"
    fits = images.dtype == np.uint8 and images.ndim == 4 and len(images) and images.shape[1:] == tuple(image_shape)
    require(fits, f"{path}: images", f"{images.dtype} {images.shape}", expected)
    return images
