"""Reads an image file as a square of 8-bit pixels; converts between 8-bit pixels and floats in [-1, 1]."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from jax_ddpm.data.files import File

# Part of the cache's key. Increase the number when a change here gives other pixels for the same file.
PREPROCESSING_VERSION = f"1, Pillow {Image.__version__}"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def to_float(images: np.ndarray) -> np.ndarray:
    """Convert uint8 in [0, 255] to float32 in [-1, 1]: x / 127.5 - 1. Any shape."""
    return np.asarray(images, np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert floats in [-1, 1] to uint8 in [0, 255], the inverse of `to_float`: clipped, then rounded. Any shape."""
    return np.rint((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)


def read_image(file: File, image_size: int, channels: int | None = None) -> np.ndarray:
    """Read an image file as a square: `open_image`, then `resize_and_crop`.

    Args:
        file: path or open file; png, jpeg, webp, bmp or gif, of any mode and size.
        image_size: height and width of the result.
        channels: 1 or 3. None: 1 for gray images, 3 for colour images.

    Returns:
        uint8 (image_size, image_size, channels).

    Raises:
        Exception: see `open_image`.
    """
    return resize_and_crop(open_image(file, channels), image_size)


def open_image(file: File, channels: int | None = None) -> Image.Image:
    """Read an image file in mode L (channels = 1), RGB (channels = 3), or the one that fits the image (None).

    Applies the EXIF orientation. Transparent pixels become white. Reads only the first frame of an animation.

    Raises:
        Exception: of any class that Pillow chooses, if the file is not an image, is truncated, or has so many pixels
            that Pillow suspects a decompression bomb.
    """
    if isinstance(file, str | os.PathLike) and not os.path.isfile(file):
        raise FileNotFoundError("no such file")  # also for a broken link, and for a pipe: opening it would block
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            image.load()
            image = _gray_or_rgb(_apply_exif_orientation(image))
    return image if channels is None else image.convert("L" if channels == 1 else "RGB")


def resize_and_crop(image: Image.Image, image_size: int) -> np.ndarray:
    """Resize the short side to `image_size` (bicubic, antialiased) and cut out the centre.

    An image whose short side is already `image_size` is cut but not resized.

    Args:
        image: mode L or RGB.
        image_size: height and width of the result.

    Returns:
        uint8 (image_size, image_size, 1 or 3).
    """
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    if short == image_size:
        image = image.crop((int(left), int(top), int(left) + short, int(top) + short))
    else:
        box = (left, top, left + short, top + short)
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image).reshape(image_size, image_size, -1)


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the pixels may be fine
        return image


def _gray_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel: "I;16", or "I" in older versions of Pillow
        levels = np.clip(np.asarray(image), 0, 65535) / 257
        return Image.fromarray(np.rint(levels).astype(np.uint8))
    gray = image.mode in ("1", "L", "LA")
    if image.mode in ("P", "PA"):
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
        gray = bool((red == green).all() and (green == blue).all())
    mode = "L" if gray else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        image = white
    return image.convert(mode)
