"""Pictures: functions from arrays to Pillow images and matplotlib figures.

Images come in as uint8 (N, H, W, C) or (rows, columns, H, W, C), C = 1 (shown gray) or 3. Enlarging repeats pixels.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from jax_ddpm.data import to_uint8
from jax_ddpm.errors import UserError

GAP = 2  # pixels between and around tiles
PAPER = 255


def grid(images: np.ndarray, columns: int | None = None, tile: int = 48) -> Image.Image:
    """Images in rows, as near to a square as may be; each enlarged by a whole factor to about `tile` pixels or more."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    blank = np.full((rows * columns - len(images), *images.shape[1:]), PAPER, np.uint8)
    return table(np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:]), tile=tile)


def table(images: np.ndarray, labels: Sequence[str] = (), tile: int = 48) -> Image.Image:
    """uint8 (rows, columns, H, W, C) as a picture, a label over each column where given."""
    rows, columns, height, width, channels = images.shape
    scale = max(1, math.ceil(tile / max(height, width)))
    h, w = height * scale + GAP, width * scale + GAP
    head = 18 if labels else 0
    canvas = np.full((head + rows * h + GAP, columns * w + GAP, channels), PAPER, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = head + GAP + row * h, GAP + column * w
            enlarged = images[row, column].repeat(scale, axis=0).repeat(scale, axis=1)
            canvas[top : top + height * scale, left : left + width * scale] = enlarged
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    font = ImageFont.load_default(size=12)
    for column, label in enumerate(labels):
        middle = GAP + column * w + (w - GAP) / 2
        ImageDraw.Draw(picture).text((middle, head / 2 + 1), label, fill=(0,) * channels, anchor="mm", font=font)
    return picture


def write_gif(path: Path, frames: np.ndarray, seconds: float = 5.0, hold: float = 2.0) -> None:
    """uint8 (F, N, H, W, C) as an endless GIF: F grids of N images over `seconds`, the last one for `hold` more."""
    pictures = [grid(images, tile=32) for images in frames]
    durations = [round(1000 * seconds / len(pictures))] * (len(pictures) - 1) + [round(1000 * hold)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def loss_curve(rows: Sequence[dict]) -> Figure:
    """Training and validation loss over steps, from the rows of metrics.jsonl."""
    rows = [row for row in rows if row["loss"] is not None]  # null: every step of the row was skipped
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=0.8, label="training")
    window = max(1, len(losses) // 25)
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"training, mean of {window} rows")
    held_out = [(row["step"], row["validation_loss"]) for row in rows if row.get("validation_loss") is not None]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", markersize=3, label="validation")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def check_images_path(path: Path) -> None:
    """UserError unless `path` is a place that `write_images` can write to; makes its folder."""
    if path.suffix not in (".png", ".npz", ""):
        raise UserError(f"{path} ends in {path.suffix}: expected a .png (grid), a .npz, or a folder.")
    folder = path if path.suffix == "" else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_dir() != (path.suffix == ""):
            raise UserError(f"{path} is a folder: expected a file's name.")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from None


def stretched(x: np.ndarray) -> np.ndarray:
    """Float images (N, H, W, C), each from its own minimum and maximum to [-1, 1]; flat ones become 0."""
    low, high = x.min(axis=(1, 2, 3), keepdims=True), x.max(axis=(1, 2, 3), keepdims=True)
    return (2 * x - low - high) / np.where(high > low, high - low, 1)


def write_images(path: Path, x_0: np.ndarray, rescale: str = "none") -> str:
    """Float images (N, H, W, C) in [-1, 1] as a grid (.png), arrays (.npz) or a PNG each (folder); says what it wrote.

    rescale: "none", or "per-image" for `stretched`. A .npz holds `images`, uint8, and `x0`, float32 as sampled. Files
    of the same names are overwritten.
    """
    images = to_uint8(stretched(x_0) if rescale == "per-image" else x_0)
    if path.suffix == ".png":
        grid(images).save(path)
        return f"a grid of {len(images)} images: {path}"
    if path.suffix == ".npz":
        np.savez(path, images=images, x0=np.asarray(x_0, np.float32))
        return f"{len(images)} images as arrays: {path}"
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / f"{number:05d}.png")
    return f"{len(images)} images: {path}/00000.png to {len(images) - 1:05d}.png"
