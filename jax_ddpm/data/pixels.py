"""From an image file to a square of 8-bit pixels, and from pixels to the numbers that a network sees and back."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from jax_ddpm.data.files import File

RULE = f"1, Pillow {Image.__version__}"  # part of a cache's key: count up when the same file gives other pixels
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] to float32 in [-1, 1], any shape."""
    return np.asarray(images, np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] to uint8 in [0, 255], any shape; clipped, then rounded to the nearest level."""
    return np.rint((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)


def read_image(file: File, image_size: int, channels: int | None = None) -> np.ndarray:
    """Read an image file as a square: `open_image`, then `square`.

    Args:
        file: path or open file: png, jpeg, webp, bmp or gif, of any mode and size.
        image_size: height and width of the result.
        channels: 1 or 3; None keeps gray images gray (1) and colour images in colour (3).

    Returns:
        uint8 (image_size, image_size, channels).

    Raises:
        Exception: as `open_image`.
    """
    return square(open_image(file, channels), image_size)


def open_image(file: File, channels: int | None = None) -> Image.Image:
    """Read an image file in mode L or RGB, as `channels` (1, 3, or None: as it is) says.

    Turned as its EXIF orientation says; transparent parts become white; of an animation, the first frame.

    Raises:
        Exception: of whatever class Pillow chooses, if the file is not an image, is cut short, or is so large in pixels
            that Pillow takes it for a decompression bomb.
    """
    if isinstance(file, str | os.PathLike) and not os.path.isfile(file):
        raise FileNotFoundError("no such file")  # a dangling link; a pipe would be waited for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            image.load()
            image = _gray_or_rgb(_upright(image))
    return image if channels is None else image.convert("L" if channels == 1 else "RGB")


def square(image: Image.Image, image_size: int) -> np.ndarray:
    """Resize the short side to `image_size` (bicubic, antialiased), unless it is that, and cut out the centre.

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


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data say nothing about the pixels
        return image


def _gray_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: "I;16", in older Pillow "I"
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
