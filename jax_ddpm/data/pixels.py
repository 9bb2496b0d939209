"""Reads an image file as 8-bit pixels of one size; converts between 8-bit pixels and floats in [-1, 1]."""

import os
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from jax_ddpm.data.files import File
from jax_ddpm.data.formats import HEAD, REMEDIES, format_of_head, formats
from jax_ddpm.data.levels import Range, RangeNeeded, is_deep, read_levels, to_8_bits, upright
from jax_ddpm.spec.image_size import ImageSize, height_and_width

# Part of the cache's key. Increase the number when a change here gives other pixels for the same file.
PREPROCESSING_VERSION = f"2, Pillow {Image.__version__}"


class Opened(NamedTuple):
    """An image file, read."""

    image: Image.Image
    """In mode L or RGB."""
    is_deep: bool
    """Whether the file has more than 8 bits per channel."""
    several_frames: bool
    """Whether the file is an animation or has several pages."""


def to_float(images: np.ndarray) -> np.ndarray:
    """Convert uint8 in [0, 255] to float32 in [-1, 1]: x / 127.5 - 1. Any shape."""
    return np.asarray(images, np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert floats in [-1, 1] to uint8 in [0, 255], the inverse of `to_float`: clipped, then rounded. Any shape."""
    return np.rint((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)


def open_image(file: File, channels: int | None = None, value_range: Range | None = None) -> Opened:
    """Read an image file in mode L (channels = 1), RGB (channels = 3), or the one that fits the image (None).

    Applies the EXIF orientation. Transparent pixels become white. Reads only the first frame or page. Call it inside
    `quiet_pillow`.

    Args:
        file: path, open file, or function that opens one.
        channels: 1, 3 or None.
        value_range: the values that become black and white, for images with more than 8 bits per channel.

    Raises:
        RangeNeeded: the image has more than 8 bits per channel, and `value_range` is None.
        Exception: of any class that Pillow chooses, if the file is not an image, is truncated, or has so many pixels
            that Pillow suspects a decompression bomb.
    """
    with _open(file) as image:
        several_frames = getattr(image, "is_animated", False) and image.format != "MPO"
        deep = is_deep(image)
        if deep and value_range is None:
            raise RangeNeeded
        whole = to_8_bits(read_levels(image, lambda: _open(file)), value_range) if deep else upright(image)
        pixels = _gray_or_rgb(whole)
    if channels is not None:
        pixels = pixels.convert("L" if channels == 1 else "RGB")
    return Opened(pixels, deep, several_frames)


def open_levels(file: File) -> np.ndarray | None:
    """The values of an image with more than 8 bits per channel, as `read_levels` gives them; None for other images.

    Raises:
        Exception: as `open_image`.
    """
    with _open(file) as image:
        return read_levels(image, lambda: _open(file)) if is_deep(image) else None


def resize_and_crop(image: Image.Image, image_size: ImageSize) -> np.ndarray:
    """Resize an image so that it covers the size (bicubic, antialiased), and cut out the centre.

    An image that covers the size exactly without being resized is only cut.

    Args:
        image: mode L or RGB.
        image_size: height and width of the result; an integer if they are equal.

    Returns:
        uint8 (height, width, 1 or 3).
    """
    height, width = height_and_width(image_size)
    box_width, box_height = (
        min(image.width, image.height * width / height),
        min(image.height, image.width * height / width),
    )
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    if (box_width, box_height) == (width, height):
        image = image.crop((int(left), int(top), int(left) + width, int(top) + height))
    else:
        box = (left, top, left + box_width, top + box_height)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image).reshape(height, width, -1)


def resize_array(image: np.ndarray, image_size: ImageSize) -> np.ndarray:
    """`resize_and_crop` for uint8 (H, W, C) with any number of channels: each is resized alone."""
    channels = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    return np.concatenate([resize_and_crop(Image.fromarray(c), image_size) for c in channels], axis=-1)


def _open(file: File) -> Image.Image:
    """Open an image file without loading its pixels. Raises what Pillow raises, and for what it would only warn of."""
    if isinstance(file, str | os.PathLike) and not os.path.isfile(file):
        raise FileNotFoundError("no such file")  # also for a broken link, and for a pipe: opening it would block
    stream = file() if callable(file) else file
    try:
        image = Image.open(stream, formats=formats())
    except UnidentifiedImageError:
        if (name := _format(stream)) not in (None, *formats()):
            raise ValueError(f"{name}: {REMEDIES.get(name, 'not readable here')}") from None
        raise
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels; at most {limit:,} are read")
    return image


def _format(file) -> str | None:
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as stream:
            return format_of_head(stream.read(HEAD))
    file.seek(0)
    return format_of_head(file.read(HEAD))


def _gray_or_rgb(image: Image.Image) -> Image.Image:
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
