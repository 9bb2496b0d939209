"""Many small images in one picture. Images are enlarged by repeating pixels."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jax_ddpm.data.pixels import to_uint8
from jax_ddpm.report.channels import visible
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.files import atomic_path

GAP = 2  # pixels between and around images
BACKGROUND = 255  # gray level
LABEL_HEIGHT = 18  # pixels for the labels of columns
FONT_SIZE = 12  # pixels
MAX_CLASS_ROWS = 50
FARTHEST = 5.0  # floats beyond this are not images in [-1, 1]; samples that are not clipped stay within it


def levels(images: np.ndarray, dims: int) -> np.ndarray:
    """Images as uint8: unchanged, or from floats around [-1, 1], which are black and white.

    dims: number of axes that the images must have. Raises UserError for other axes, dtypes and values.
    """
    images = np.asarray(images)
    axes = "N, H, W, C" if dims == 4 else "rows, columns, H, W, C"
    require(images.ndim == dims and images.size > 0, "shape of the images", images.shape, f"expected ({axes})")
    if images.dtype == np.uint8:
        return images
    low, high = (images.min(), images.max()) if images.dtype.kind == "f" else (np.nan, np.nan)
    require(
        -FARTHEST <= low <= high <= FARTHEST,
        "images",
        f"{images.dtype} from {images.min():.3g} to {images.max():.3g}",
        "expected uint8, or floats around [-1, 1]",
    )
    return to_uint8(images)


def grid(images: np.ndarray, columns: int | None = None, tile: int = 48) -> Image.Image:
    """Images (N, H, W, C) in rows, as a nearly square picture.

    Args:
        images: uint8, or floats around [-1, 1]. C = 1 (gray) or 3 (RGB); others become gray tiles (`visible`).
        columns: images per row; ceil(sqrt(N)) if None.
        tile: each image is enlarged by the smallest whole factor that makes its longer side at least `tile` pixels.
    """
    images = levels(images, 4)
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    blank = np.full((rows * columns - len(images), *images.shape[1:]), BACKGROUND, np.uint8)
    return table(np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:]), tile=tile)


def table(
    images: np.ndarray, labels: Sequence[str] = (), tile: int = 48, row_labels: Sequence[str] = ()
) -> Image.Image:
    """Images (rows, columns, H, W, C) as a picture, with optional labels.

    Args:
        images: uint8, or floats around [-1, 1]. C = 1 (gray) or 3 (RGB); others become gray tiles (`visible`).
        labels: one per column, written above it; none if empty.
        tile: each image is enlarged by the smallest whole factor that makes its longer side at least `tile` pixels.
        row_labels: one per row, written left of it; none if empty.
    """
    images = visible(levels(images, 5))
    rows, columns, height, width, channels = images.shape
    scale = max(1, math.ceil(tile / max(height, width)))
    h, w = height * scale + GAP, width * scale + GAP
    font = ImageFont.load_default(size=FONT_SIZE)
    head = LABEL_HEIGHT if labels else 0
    side = math.ceil(max(map(font.getlength, row_labels))) + 3 * GAP if row_labels else 0
    canvas = np.full((head + rows * h + GAP, side + columns * w + GAP, channels), BACKGROUND, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = head + GAP + row * h, side + GAP + column * w
            enlarged = images[row, column].repeat(scale, axis=0).repeat(scale, axis=1)
            canvas[top : top + height * scale, left : left + width * scale] = enlarged
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    draw, ink = ImageDraw.Draw(picture), (0,) * channels
    for column, label in enumerate(labels):
        middle = side + GAP + column * w + (w - GAP) / 2
        draw.text((middle, head / 2 + 1), label, fill=ink, anchor="mm", font=font)
    for row, label in enumerate(row_labels):
        draw.text((side - GAP, head + GAP + row * h + (h - GAP) / 2), label, fill=ink, anchor="rm", font=font)
    return picture


def class_grid(
    images: np.ndarray, labels: np.ndarray | None, names: Sequence[str] = (), columns: int | None = None, tile: int = 48
) -> Image.Image:
    """Images (N, H, W, C) with a row for each label. Without labels, or with very many: the `grid` of all.

    Args:
        images: uint8, or floats around [-1, 1].
        labels: integers (N,); other arrays count as no labels.
        names: of the labels 0, 1, ...; a label without a name is written as "none" if it is the first beyond them, else
            as its number.
        columns: images per row of a `grid`.
        tile: as in `grid`.
    """
    rows = [] if labels is None or np.ndim(labels) != 1 else np.unique(labels)
    if not 2 <= len(rows) <= MAX_CLASS_ROWS:
        return grid(images, columns, tile)
    images = levels(images, 4)
    groups = [images[labels == label] for label in rows]
    blank = np.full_like(images[0], BACKGROUND)
    cells = np.full((len(rows), max(map(len, groups)), *blank.shape), blank)
    for row, group in enumerate(groups):
        cells[row, : len(group)] = group
    return table(cells, tile=tile, row_labels=[label_text(int(label), names) for label in rows])


def label_text(label: int, names: Sequence[str]) -> str:
    """The name of a label; "none" for the null label, which follows the named ones; else its number."""
    return names[label] if label < len(names) else "none" if names and label == len(names) else str(label)


def beside(x_t: np.ndarray, x_0: np.ndarray, labels: Sequence[str] = (), tile: int = 48) -> Image.Image:
    """States x_t above the x_0 predicted from them: a column per state, two rows per image.

    Args:
        x_t: states (F, N, H, W, C), uint8 or floats around [-1, 1].
        x_0: predicted x_0, likewise.
        labels: one per state, written above its column; none if empty.
        tile: as in `table`.
    """
    frames, count = x_t.shape[:2]
    pairs = np.stack([x_t, x_0], axis=2).reshape(frames, 2 * count, *x_t.shape[2:])
    return table(pairs.swapaxes(0, 1), labels, tile, row_labels=("x_t", "predicted x_0") * count)


def write_gif(
    path: Path,
    frames: np.ndarray,
    seconds: float = 5.0,
    hold: float = 2.0,
    labels: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> None:
    """Write a looping GIF of F grids of N images.

    Args:
        path: the file to write.
        frames: uint8 (F, N, H, W, C), or floats around [-1, 1].
        seconds: each grid but the last is shown for seconds / F.
        hold: seconds for which the last grid is shown.
        labels, names: as in `class_grid`.
    """
    pictures = [class_grid(images, labels, names, tile=32) for images in frames]
    durations = [round(1000 * seconds / len(pictures))] * (len(pictures) - 1) + [round(1000 * hold)]
    with atomic_path(path) as draft:
        pictures[0].save(draft, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
