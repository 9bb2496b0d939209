"""The page of a run: one HTML file that contains everything it shows and loads nothing else."""

import base64
import hashlib
import html
import importlib.resources
import io
import json
import math
import re

import numpy as np
from PIL import Image

from jax_ddpm.report.channels import visible

MAX_POINTS = 600  # of a curve
COLOURS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")  # of curves, in page.html


def page(content: dict) -> str:
    """The HTML of the page of a run, or of several.

    Texts in `content` are shown literally, never interpreted as HTML. Numbers that are not finite become gaps.

    Args:
        content: a dict that JSON can hold, except for nan and inf. Its keys are `title`, `subtitle`, `facts`, `notes`,
            `grids`, `grids_text`, `charts`, `reverse`, `nearest`, `pictures`, `settings` and `command`;
            `jax_ddpm.training.run_page.page_content` makes it from the folder of a run. `tables` and `strips`, which
            may be left out, are those of `jax_ddpm.training.compare`.
    """
    template = importlib.resources.files("jax_ddpm.report").joinpath("page.html").read_text("utf-8")
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {csp_hash(template, '<style>', '</style>')}; "
        f"script-src {csp_hash(template, '<script>', '</script>')}"
    )
    data = json.dumps(nan_to_none(content), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"@POLICY@": policy, "@TITLE@": html.escape(content["title"]), "@DATA@": data}
    return re.sub("|".join(parts), lambda found: parts[found[0]], template)


def csp_hash(template: str, start: str, end: str) -> str:
    """The hash by which a content security policy allows the inline script or style between `start` and `end`."""
    source = template.split(start)[1].split(end)[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def nan_to_none(value):
    """Replace nan and inf, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {name: nan_to_none(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def data_uri(picture: Image.Image, limit: int) -> str:
    """A picture as a data: URI of at most `limit` bytes, in WebP.

    Lossless if that fits, else at a lower quality, else at a smaller size. A picture of at most 16x16 pixels may exceed
    the limit.
    """
    picture = picture.convert("RGB")
    while True:
        for options in ({"lossless": True}, *({"quality": quality} for quality in (90, 75, 50, 25))):
            file = io.BytesIO()
            picture.save(file, "WEBP", **options)
            uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
            if len(uri) <= limit or max(picture.size) <= 16:
                return uri
        picture = picture.reduce(2)


def image(picture: Image.Image, limit: int, alt: str) -> dict:
    """A picture for page.html: a data: URI of at most `limit` bytes, its size in pixels, and its alternative text."""
    return {"src": data_uri(picture, limit), "width": picture.width, "height": picture.height, "alt": alt}


def sheet(tiles: np.ndarray, max_tile: int = 64) -> Image.Image:
    """Tiles uint8 (columns, rows, H, W, C) in one picture without gaps.

    If H or W exceeds `max_tile`, each tile is reduced by a whole factor, by itself, so that neighbours do not mix.
    """
    columns, rows, *sides, _ = tiles.shape
    factor = math.ceil(max(sides) / max_tile)
    shown = visible(tiles.reshape(columns * rows, *tiles.shape[2:]))
    pictures = [Image.fromarray(tile[..., 0] if tile.shape[-1] == 1 else tile).reduce(factor) for tile in shown]
    width, height = pictures[0].size
    canvas = Image.new(pictures[0].mode, (columns * width, rows * height))
    for number, picture in enumerate(pictures):
        canvas.paste(picture, (number // rows * width, number % rows * height))
    return canvas


def curve(
    name: str, x: np.ndarray, y: np.ndarray, colour: str = "first", style: str = "line", log: bool = False
) -> dict:
    """A curve of a chart. Above MAX_POINTS points, groups of neighbours are replaced by their mean.

    colour: one of COLOURS. style: "line", "faint" or "points". log: values <= 0 become gaps.
    """
    x, y = np.asarray(x), np.asarray(y, np.float64)
    group = math.ceil(len(y) / MAX_POINTS)
    if group > 1:
        starts = np.arange(0, len(y), group)
        y = np.add.reduceat(y, starts) / np.diff([*starts, len(y)])
        x = x[np.minimum(starts + group, len(x)) - 1]
    y = np.where(np.isfinite(y) & ((y > 0) | (not log)), y, np.nan)
    return {
        "name": name,
        "x": [float(f"{value:.6g}") if x.dtype.kind == "f" else int(value) for value in x],
        "y": [float(f"{value:.5g}") for value in y],
        "colour": colour,
        "style": style,
    }
