"""Sampled images in files: where they may go, and how they are written."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from jax_ddpm.data import to_uint8
from jax_ddpm.report.pictures import grid
from jax_ddpm.spec.errors import UserError


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


def shown(x: np.ndarray, rescale: str) -> np.ndarray:
    """Float images (N, H, W, C) as uint8, within [-1, 1] ("none") or each within its own range ("per-image")."""
    return to_uint8(stretched(x) if rescale == "per-image" else x)


def write_images(
    path: Path, x_0: np.ndarray, rescale: str = "none", picture: Image.Image | None = None, **arrays: np.ndarray
) -> str:
    """Float images (N, H, W, C) in [-1, 1] as a grid (.png), arrays (.npz) or a PNG each (folder); says what it wrote.

    rescale: "none", or "per-image" for `stretched`. A .npz holds `images`, uint8, and `x0`, float32 as sampled, and the
    further `arrays`; a .png holds `picture` where one is given. Files of the same names are overwritten.
    """
    images = shown(x_0, rescale)
    if path.suffix == ".png":
        (picture or grid(images)).save(path)
        return f"a grid of {len(images)} images: {path}"
    if path.suffix == ".npz":
        np.savez(path, images=images, x0=np.asarray(x_0, np.float32), **arrays)
        return f"{len(images)} images as arrays: {path}"
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / f"{number:05d}.png")
    return f"{len(images)} images: {path}/00000.png to {len(images) - 1:05d}.png"
