"""The page of a run: one HTML file that holds everything it shows and fetches nothing."""

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

POINTS = 600  # of a curve, at most


def page(content: dict) -> str:
    """The HTML of a page from its content, which `page.html` draws; see `training/run_page.py` for its fields.

    Every text in it is shown as it is, never taken for HTML. Numbers that are not finite become gaps.
    """
    template = importlib.resources.files("jax_ddpm.report").joinpath("page.html").read_text("utf-8")
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {source_hash(template, '<style>', '</style>')}; "
        f"script-src {source_hash(template, '<script>', '</script>')}"
    )
    data = json.dumps(finite(content), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"@POLICY@": policy, "@TITLE@": html.escape(content["title"]), "@DATA@": data}
    return re.sub("|".join(parts), lambda found: parts[found[0]], template)


def source_hash(template: str, start: str, end: str) -> str:
    """What a content security policy calls an inline script or style."""
    source = template.split(start)[1].split(end)[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def finite(value):
    """JSON's None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def data_uri(picture: Image.Image, limit: int) -> str:
    """A picture as a data: URI of at most `limit` bytes: WebP without loss if that fits, else coarser, else smaller."""
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
    """A picture with its size and the text that stands for it."""
    return {"src": data_uri(picture, limit), "width": picture.width, "height": picture.height, "alt": alt}


def sheet(tiles: np.ndarray, largest: int = 64) -> Image.Image:
    """uint8 (columns, rows, H, W, C) edge to edge, tiles larger than `largest` pixels made smaller."""
    columns, rows, height, width, channels = tiles.shape
    canvas = tiles.transpose(1, 2, 0, 3, 4).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    return picture.reduce(math.ceil(max(height, width) / largest))


def curve(
    name: str, x: np.ndarray, y: np.ndarray, colour: str = "first", style: str = "line", log: bool = False
) -> dict:
    """A line of a chart, thinned to means of equally many neighbours where it has more than POINTS.

    colour: "first" or "second"; style: "line", "faint" or "points"; log: what is not positive becomes a gap.
    """
    x, y = np.asarray(x), np.asarray(y, np.float64)
    group = math.ceil(len(y) / POINTS)
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
