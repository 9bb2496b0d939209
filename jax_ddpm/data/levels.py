"""Images with more than 8 bits per channel: 16-bit PNG and TIFF, integer and float TIFF, PGM."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

FULL_RANGE = (0.0, 65535.0)
Range = tuple[float, float]


class RangeNeeded(Exception):
    """An image has more than 8 bits per channel, and the values that become black and white are not given."""


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image, not loaded yet, has more than 8 bits per channel."""
    return image.mode.startswith(("I", "F")) or _raw_mode(image).startswith(("RGB;16", "RGBA;16", "LA;16"))


def read_levels(image: Image.Image, reopen: Callable[[], Image.Image]) -> np.ndarray:
    """The values of a deep image, upright: (H, W) or (H, W, C) with C = 2 (gray, alpha), 3 or 4 (the last is alpha).

    Args:
        image: the opened image, not loaded yet.
        reopen: opens it again.

    Raises:
        Exception: as Pillow chooses; ValueError for values that are not finite.
    """
    raw = _raw_mode(image)
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(upright(image))
        if levels.dtype.kind == "f" and not np.isfinite(levels).all():
            raise ValueError("it has values that are not finite")
        return levels
    # Pillow has no mode for 16 bits in several channels. It unpacks the upper bytes; told that the order of the bytes
    # is the other one, it unpacks the lower bytes.
    if raw.startswith("LA"):
        _set_raw_mode(image, "RGBA")  # four bytes: the upper and the lower one of gray, then those of alpha
        upper_and_lower = np.asarray(upright(image)).astype(np.uint16)
        return upper_and_lower[..., 0::2] * 256 + upper_and_lower[..., 1::2]
    upper = np.asarray(upright(image)).astype(np.uint16)
    with reopen() as again:
        native = "B" if np.little_endian else "L"  # the order that is not this machine's
        other = {"L": "B", "B": "L", "N": native}[raw[-1]]
        _set_raw_mode(again, raw[:-1] + other)
        return upper * 256 + np.asarray(upright(again))


def to_8_bits(levels: np.ndarray, value_range: Range) -> Image.Image:
    """Values of `read_levels` as an image in mode L, LA, RGB or RGBA. `value_range` becomes 0 to 255; alpha stays."""
    pixels = scale(levels, value_range)
    if levels.ndim == 3 and levels.shape[-1] in (2, 4):
        pixels[..., -1] = scale(levels[..., -1], FULL_RANGE)
    return Image.fromarray(pixels)


def scale(values: np.ndarray, value_range: Range) -> np.ndarray:
    """Map the range (low, high) to uint8 0 to 255: values outside are clipped, the others rounded. Any shape."""
    low, high = value_range
    return np.rint((np.clip(values, low, high) - np.float64(low)) * (255 / (high - low))).astype(np.uint8)


def range_of(levels: np.ndarray) -> Range:
    """Smallest and largest value of `read_levels`, without alpha."""
    colours = levels[..., :-1] if levels.ndim == 3 and levels.shape[-1] in (2, 4) else levels
    return float(colours.min()), float(colours.max())


def joined(ranges: list[Range]) -> Range:
    """The smallest range that holds all of these."""
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def usable(value_range: Range) -> Range:
    """The range, or, if it holds one value only, a wider one that also holds 0 and 1."""
    low, high = value_range
    return (low, high) if low < high else (min(low, 0.0), max(high, 1.0))


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the pixels may be fine
        return image


def _raw_mode(image: Image.Image) -> str:
    """How Pillow will unpack the pixels, such as RGB;16B; empty if it does not say."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
    arguments = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return arguments if isinstance(arguments, str) else ""


def _set_raw_mode(image: Image.Image, raw: str) -> None:
    def replaced(arguments):
        return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw

    image.tile = [tile._replace(args=replaced(tile.args)) for tile in image.tile]
