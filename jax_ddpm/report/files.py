"""Writes sampled images to files."""

import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jax_ddpm.data import to_uint8
from jax_ddpm.report.channels import channel_note, visible
from jax_ddpm.report.pictures import grid, write_gif
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.text import one_line

VIDEOS = (".mp4", ".webm", ".mov", ".avi", ".mkv")


def check_images_path(path: Path, overwrite: bool = False) -> None:
    """Create the folder for `write_images(path, ...)`.

    Raises UserError if `path` is not valid or cannot be written; without `overwrite` also for a folder that is not
    empty, and for a file that `write_images` did not write.
    """
    if path.suffix in VIDEOS:
        gif = path.with_suffix(".gif")
        raise UserError(
            f"{path}: this command makes no videos. It makes a GIF (--out {gif}).\n"
            f"ffmpeg, a program of its own, makes a video of it: ffmpeg -i {gif} -pix_fmt yuv420p {path}"
        )
    if path.suffix not in (".png", ".npz", ".gif", ""):
        raise UserError(f"{path} ends in {path.suffix}: expected a .png (grid), a .gif, a .npz, or a folder.")
    folder = path if path.suffix == "" else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_dir() != (path.suffix == ""):
            raise UserError(f"{path} is a folder: expected the name of a file.")
        with tempfile.TemporaryFile(dir=folder):
            pass
        problem = None if overwrite else reason_to_keep(path)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from None
    if problem:
        raise UserError(f"{path} {problem}.\nChoose another --out, or add --overwrite.")


def reason_to_keep(path: Path) -> str | None:
    """Why `path` should not be written to without asking; None if nothing is lost. Raises OSError."""
    if path.is_dir():
        return "is not empty" if any(not entry.name.startswith(".") for entry in path.iterdir()) else None
    if not path.exists():
        return None
    if path.suffix == ".npz":
        arrays = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else ()
        return None if "x0.npy" in arrays else "exists, and is no file of samples"
    kind, head = ("GIF", b"GIF89a") if path.suffix == ".gif" else ("PNG", b"\x89PNG\r\n\x1a\n")
    with open(path, "rb") as file:
        return None if file.read(len(head)) == head else f"exists, and is no {kind}"


def rescale_per_image(x: np.ndarray) -> np.ndarray:
    """Float images (N, H, W, C), each mapped linearly from its minimum and maximum to [-1, 1]; constant ones to 0."""
    low, high = x.min(axis=(1, 2, 3), keepdims=True), x.max(axis=(1, 2, 3), keepdims=True)
    return (2 * x - low - high) / np.where(high > low, high - low, 1)


def as_uint8(x: np.ndarray, rescale: str) -> np.ndarray:
    """Float images (N, H, W, C) as uint8: clipped to [-1, 1] ("none"), or each rescaled to [-1, 1] ("per-image")."""
    return to_uint8(rescale_per_image(x) if rescale == "per-image" else x)


def write_frames(path: Path, frames: np.ndarray, rescale: str = "none", labels=None, names: Sequence[str] = ()) -> str:
    """Write a .gif of float frames (F, N, H, W, C), from noise to images.

    labels, names: as in `class_grid`. Other arguments and errors as in `write_images`.
    """
    shown = np.stack([as_uint8(x, rescale) for x in frames])
    try:
        write_gif(path, shown, labels=labels, names=names)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or one_line(error)}).") from None
    count, note = frames.shape[1], channel_note(frames.shape[-1])
    return f"{len(frames)} states from noise to {count} images: {path}{note and f'. {note}'}"


def write_images(
    path: Path, x_0: np.ndarray, rescale: str = "none", picture: Image.Image | None = None, **arrays: np.ndarray
) -> str:
    """Write images to a file or folder. Replaces a file, and in a folder all numbered pictures.

    Args:
        path: `.png` for one grid of all images; `.npz` for arrays: `images` (uint8), `x0` (float32, as given) and
            `arrays`; a folder for one PNG file per image.
        x_0: float images (N, H, W, C); [-1, 1] is shown as black to white.
        rescale: "none", or "per-image" to map each image from its own range to [-1, 1].
        picture: for a `.png`, a picture to write instead of the grid.
        arrays: further arrays for a `.npz`.

    Returns:
        A line of text that says what was written, and, if images have other than 1 or 3 channels, how they are shown.

    Raises:
        UserError: the disk is full, or something else prevents writing.
    """
    images, note = as_uint8(x_0, rescale), channel_note(x_0.shape[-1])
    note = note and f". {note}"
    try:
        if path.suffix == ".png":
            with atomic_path(path) as draft:
                (picture or grid(images)).save(draft, format="PNG")
            return f"a grid of {len(images)} images: {path}{note}"
        if path.suffix == ".npz":
            with atomic_path(path) as draft, open(draft, "wb") as file:
                np.savez(file, images=images, x0=np.asarray(x_0, np.float32), **arrays)
            return f"{len(images)} images as arrays: {path}"
        for old in path.iterdir():
            if re.fullmatch(r"\d{5,}\.png", old.name):
                old.unlink()
        for number, image in enumerate(visible(images)):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / f"{number:05d}.png")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or one_line(error)}).") from None
    return f"{len(images)} images: {path}/00000.png to {len(images) - 1:05d}.png{note}"
