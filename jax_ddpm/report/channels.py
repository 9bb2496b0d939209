"""Images with any number of channels as gray or RGB images, which can be shown."""

import math

import numpy as np


def visible(images: np.ndarray) -> np.ndarray:
    """Images uint8 (..., H, W, C) as images that can be shown, with C = 1 (gray) or 3 (RGB); other C become tiles.

    With 1 or 3 channels, they are returned unchanged. With other numbers, each image becomes a gray image of tiles, one
    per channel, in rows of ceil(sqrt(C)) tiles; places without a channel are white.
    """
    *front, height, width, channels = images.shape
    if channels in (1, 3):
        return images
    columns = math.ceil(math.sqrt(channels))
    rows = math.ceil(channels / columns)
    padded = np.full((*front, height, width, rows * columns), 255, images.dtype)
    padded[..., :channels] = images
    tiles = padded.reshape(*front, height, width, rows, columns)
    tiles = np.moveaxis(tiles, (-4, -3, -2, -1), (-3, -1, -4, -2))  # (..., rows, H, columns, W)
    return tiles.reshape(*front, rows * height, columns * width, 1)


def channel_note(channels: int) -> str:
    """How `visible` shows images of so many channels, as a sentence. "" for gray and RGB images."""
    return "" if channels in (1, 3) else f"Each image is shown as {channels} gray tiles, one per channel."
