"""Images in .npy and .npz files of NumPy."""

import dataclasses
from pathlib import Path

import numpy as np

from jax_ddpm.data.arrays import array_source
from jax_ddpm.data.decode import reason
from jax_ddpm.data.files import Source
from jax_ddpm.data.levels import Range
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import printable

# Names that Keras, MedMNIST and others give to arrays, in small letters.
IMAGES = ("images", "x_train", "train_images", "images_train", "x", "data", "imgs", "samples")
LABELS = ("labels", "y_train", "train_labels", "labels_train", "y", "targets", "label", "arr_1")
# Held-out images and their labels, if there are any. The first that is there is used.
SPLITS = ("valid", "val", "validation", "test")
HELD_OUT = tuple(pattern.format(split) for split in SPLITS for pattern in ("x_{}", "{}_images", "images_{}"))
HELD_OUT_LABELS = tuple(pattern.format(split) for split in SPLITS for pattern in ("y_{}", "{}_labels", "labels_{}"))
NPZ_HINT = "Save it as .npy, which is read by memory map."

Header = tuple[tuple[int, ...], np.dtype]


def open_array_file(path: str, value_range: Range | None) -> Source:
    """The images in a .npy or .npz file. A .npy file is read by memory map.

    Args:
        path: a .npy file of images, or a .npz file with images, and perhaps labels and held-out images.
        value_range: as in `jax_ddpm.data.load`.

    Raises:
        UserError: no such file, a damaged one, or one in which it is not clear which array holds the images.
    """
    label, file = printable(path), Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{label}: there is no such file.\nGive the path of a .npz or .npy file of images.")
    try:
        open_file = _open_npy if file.suffix.lower() == ".npy" else _open_npz
        return open_file(file, label, value_range)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{label}: there is not enough memory to read it.\n{NPZ_HINT}") from None
    except Exception as error:  # NumPy raises nearly any exception for a damaged file
        raise UserError(
            f"{label} cannot be read ({reason(error)}).\nExpected numbers, written by numpy.savez or numpy.save."
        ) from None


def _open_npy(file: Path, label: str, value_range: Range | None) -> Source:
    images, stat = np.load(file, mmap_mode="r", allow_pickle=False), file.stat()
    key = ["npy", str(file.resolve()), stat.st_size, stat.st_mtime_ns]
    return array_source(images, value_range=value_range, name=label, key=key)


def _open_npz(file: Path, label: str, value_range: Range | None) -> Source:
    with np.load(file, allow_pickle=False) as arrays:
        headers = {name: _header(arrays, name) for name in arrays.files}
        images = _images(headers, label)
        count, image_shape = headers[images][0][0], headers[images][0][1:]
        held_out = _first(headers, HELD_OUT, lambda shape: shape[1:] == image_shape and shape[0])
        held_out_count = headers[held_out][0][0] if held_out else 0
        labels = _first(headers, LABELS, lambda shape: shape in ((count,), (count, 1)))
        held_out_labels = _first(headers, HELD_OUT_LABELS, lambda s: s in ((held_out_count,), (held_out_count, 1)))
        taken = {
            "images": images,
            "labels": labels,
            "validation_images": held_out,
            "validation_labels": held_out_labels if held_out else None,
        }
        taken = {argument: name for argument, name in taken.items() if name}
        values = {argument: arrays[name] for argument, name in taken.items()}
    source = array_source(**values, value_range=value_range, name=label)
    unused = [name for name in headers if name not in taken.values()]
    note = ", ".join(f"{argument.replace('_', ' ')} from {printable(name)}" for argument, name in taken.items())
    note = f"{label}: {note}" + (f"; not used: {', '.join(map(printable, unused))}" if unused else "")
    return dataclasses.replace(source, notes=(note, *source.notes))


def _header(arrays: np.lib.npyio.NpzFile, name: str) -> Header:
    """Shape and dtype of an array, without reading it."""
    member = name if name in arrays.zip.namelist() else f"{name}.npy"
    with arrays.zip.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype


def _images(headers: dict[str, Header], label: str) -> str:
    """The name of the array of images. Raises UserError if no array or several can be it."""
    others = (*HELD_OUT, *HELD_OUT_LABELS)
    fitting = [
        name
        for name, (shape, dtype) in headers.items()
        if len(shape) in (3, 4) and dtype.kind in "buif" and name.lower() not in others
    ]
    usual = [name for name in fitting if name.lower() in IMAGES]
    if len(chosen := usual or fitting) == 1:
        return chosen[0]
    named = {name: headers[name] for name in chosen or headers}
    shown = [f"{printable(name)} {dtype} {shape}" for name, (shape, dtype) in named.items()]
    found = f"{', '.join(shown[:6])}{', ...' if len(shown) > 6 else ''}"
    if chosen:
        raise UserError(
            f"{label} holds several arrays that can be the images: {found}.\n"
            "Save the one to train on as `images`, and its labels, if any, as `labels`."
        )
    raise UserError(
        f"{label} holds no array of images: {found or 'no arrays'}.\n"
        "Expected numbers of the shape (N, height, width) or (N, height, width, channels), named `images`."
    )


def _first(headers: dict[str, Header], names: tuple[str, ...], fits) -> str | None:
    """The first of these names, in any case of letters, whose array has a shape that fits."""
    by_name = {name.lower(): name for name, (shape, _) in headers.items() if shape and fits(shape)}
    return next((by_name[name] for name in names if name in by_name), None)
