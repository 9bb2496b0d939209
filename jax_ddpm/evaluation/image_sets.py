"""Sets of images to compare: a data set's split, a .npz file, a folder of pictures, arrays, or statistics alone."""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.data import ImageData, ShardedImages, load
from jax_ddpm.data.decode import reason
from jax_ddpm.data.folder import list_folder
from jax_ddpm.data.image_data import fingerprint
from jax_ddpm.data.user_images import read_images
from jax_ddpm.evaluation.distances import Statistics, load_statistics, statistics_fingerprint
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.run_config import DataConfig

EVALUATED = "the evaluated images"
SPLITS = ("train", "validation")
KINDS = "train:DATASET, validation:DATASET, a .npz file or a folder of pictures"
Shape = tuple[int, int, int]
Images = np.ndarray | ShardedImages


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, or the mean and the covariance of their features."""

    name: str
    """Where they come from, for messages and tables."""
    images: Images | None = None
    """uint8 (N, H, W, C)."""
    statistics: Statistics | None = None
    """Of features of images that are not here."""
    labels: np.ndarray | None = None
    """Class of each image, int32 (N,)."""
    fingerprint: str = ""
    """SHA-256 (hex) of the images or statistics. Computed if it is not given."""
    held_out: "ImageSet | None" = None
    """Other real images of the same data set, for the floor."""
    data: ImageData | None = None
    """The data set that the images are a split of."""

    def __post_init__(self):
        if not self.fingerprint:
            digest = statistics_fingerprint(self.statistics) if self.images is None else hash_images(self.images)
            object.__setattr__(self, "fingerprint", digest)

    @property
    def count(self) -> int | None:
        """Number of images; None if statistics do not tell."""
        return self.statistics.count if self.images is None else len(self.images)

    @property
    def image_shape(self) -> Shape | None:
        """(H, W, C); None for statistics."""
        return None if self.images is None else tuple(map(int, self.images.shape[1:]))


def hash_images(images: Images) -> str:
    return fingerprint(images, np.empty((0, *images.shape[1:]), np.uint8))


def open_images(
    text: str,
    image_shape: Shape | None = None,
    data: DataConfig | None = None,
    log: Callable[[str], None] = print,
) -> ImageSet:
    """The images that a text names.

    Args:
        text: `train:DATASET` or `validation:DATASET`, a split of a data set, named as for training; the path of a .npz
            file with `images` or `arr_0` (uint8, (N, H, W, C)), perhaps `labels` or `arr_1`, or with the statistics
            `mu` and `sigma`; or the path of a folder of pictures.
        image_shape: (H, W, C) that the images must have. Data sets are resized to it. Default: their own; for a data
            set the size in `data`.
        data: where data sets lie, and which images of them are held out.
        log: called with a line of text before each long operation.

    Raises:
        UserError: nothing of that kind is there, or its images have another shape.
    """
    split, colon, dataset = text.partition(":")
    if colon and split in SPLITS:
        return split_of(load_data(dataset, image_shape, data or DataConfig(), log), split)
    path = Path(text).expanduser()
    if path.suffix.lower() == ".npz":
        return check_shape(open_npz(path), image_shape)
    if path.is_dir():
        return ImageSet(text, read_pictures(path, image_shape, log))
    if path.exists():
        raise UserError(f"{text}: expected {KINDS}.")
    raise UserError(f"{text}: there is no such file or folder: expected {KINDS}.\nIf it is a data set: train:{text}")


def read_pictures(folder: Path, image_shape: Shape | None, log: Callable[[str], None]) -> np.ndarray:
    """The pictures of a folder, uint8 (N, H, W, C). UserError if the first one has another size than `image_shape`."""
    found = shape_of_pictures(folder)
    if image_shape is None:
        return read_images(folder, found, "those before it")
    sizes = [f"{height}x{width}" for height, width, _ in (found, image_shape)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"The pictures in {folder} have {sizes[0]} pixels, but {EVALUATED} have {sizes[1]}.\n"
            f"--reference train:folder:{folder} resizes them."
        )
    if found[2] != image_shape[2]:
        log(f"The pictures in {folder} have {found[2]} channels. They are read with {image_shape[2]}.")
    return read_images(folder, image_shape, EVALUATED)


def load_data(dataset: str, image_shape: Shape | None, settings: DataConfig, log: Callable[[str], None]) -> ImageData:
    """The data set at this image size. UserError if its images have another number of channels."""
    size = settings.image_size if image_shape is None else image_shape[:2]
    names = ("data_dir", "manual_dir", "cache_dir", "validation_fraction", "value_range")
    found = load(dataset, size, **{name: getattr(settings, name) for name in names}, log=log)
    channels = found.train.shape[-1]
    if image_shape is not None and channels != image_shape[2]:
        raise UserError(
            f"{dataset} has images with {channels} channel{'s' * (channels != 1)}, but {EVALUATED} have "
            f"{image_shape[2]}.\nCompare images of one kind: choose another --reference."
        )
    return found


def split_of(data: ImageData, split: str) -> ImageSet:
    """One split of a data set, with the other one as held-out images. UserError if it has no images."""
    sets = {}
    for name, images, labels in (
        ("train", data.train, data.labels),
        ("validation", data.validation, data.validation_labels),
    ):
        digest = hashlib.sha256(f"{name}:{data.fingerprint}".encode()).hexdigest()
        sets[name] = ImageSet(f"{name}:{data.name}", images, labels=labels, fingerprint=digest, data=data)
    chosen, other = sets.pop(split), sets.popitem()[1]
    if not chosen.count:
        raise UserError(f"{chosen.name} has no images.\nGive a --validation-fraction above 0, or another set.")
    held_out = other if other.count else None
    return ImageSet(chosen.name, chosen.images, None, chosen.labels, chosen.fingerprint, held_out, data)


def open_npz(path: Path) -> ImageSet:
    """Images or statistics in a .npz file."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            found = next((name for name in ("images", "arr_0") if name in names), None)
            if found is None and {"mu", "sigma"} <= names:
                return ImageSet(str(path), statistics=load_statistics(path))
            images = None if found is None else file[found]
            labels = next((file[name] for name in ("labels", "arr_1") if name in names), None)
    except UserError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged, or of another format"
        raise UserError(f"{path} cannot be read ({why}).\nExpected a file of numpy.savez.") from None
    if images is None:
        expected = "expected `images` or `arr_0` (uint8, (N, H, W, C)), or `mu` and `sigma`"
        raise UserError(f"{path} holds {', '.join(sorted(names)) or 'nothing'}: {expected}.")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        labels = None
    return image_set(images, str(path), labels)


def image_set(images: Any, name: str = "images", labels: np.ndarray | None = None) -> ImageSet:
    """An ImageSet of an array. UserError unless it is uint8 (N, H, W, C), N at least 2."""
    if not isinstance(images, ShardedImages):
        images = np.asarray(images)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise UserError(f"{name}: there are values that are not finite (nan or inf).\nWhat drew the images has failed.")
    fits = images.dtype == np.uint8 and images.ndim == 4 and 0 not in images.shape
    expected = "expected uint8 (N, H, W, C)"
    require(
        fits and not is_channels_first(images.shape), name, f"{images.dtype} {images.shape}", expected + hint(images)
    )
    return ImageSet(name, images, labels=None if labels is None else labels.astype(np.int32))


def is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether a shape (N, A, B, C) is rather (N, C, H, W)."""
    return len(shape) == 4 and shape[1] <= 4 < min(shape[2:])


def hint(images: np.ndarray) -> str:
    """How an array becomes uint8 (N, H, W, C), for a message."""
    if 0 in images.shape:
        return ". There are no images"
    if images.dtype != np.uint8:
        return "; images in [-1, 1] become that with jax_ddpm.data.to_uint8"
    if images.ndim == 3:
        return ". For gray images add the channels: images[..., None]"
    return ". If the channels are second: images.transpose(0, 2, 3, 1)" if is_channels_first(images.shape) else ""


def check_shape(images: ImageSet, image_shape: Shape | None, others: str = EVALUATED) -> ImageSet:
    """The set itself. UserError if its images have another shape than `image_shape`, which the `others` have."""
    if image_shape is not None and images.image_shape not in (None, tuple(image_shape)):
        raise UserError(
            f"{images.name} has images of {size_text(images.image_shape)}, but {others} have "
            f"{size_text(image_shape)}.\nCompare images of one size: choose another --reference, or resize them."
        )
    return images


def size_text(shape: Shape) -> str:
    height, width, channels = shape
    return f"{height}x{width} pixels with {channels} channel{'s' * (channels != 1)}"


def shape_of_pictures(folder: Path) -> Shape:
    """(H, W, C) of the first picture in a folder. UserError if there is none."""
    from jax_ddpm.data.formats import quiet_pillow
    from jax_ddpm.data.levels import FULL_RANGE
    from jax_ddpm.data.pixels import open_image

    root, listing = list_folder(str(folder))
    try:
        with quiet_pillow():
            image = open_image(root / listing.images[0], None, FULL_RANGE).image
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly any exception for a damaged file
        raise UserError(f"{root / listing.images[0]} cannot be read ({reason(error)}).\nExpected an image.") from None
    return image.height, image.width, len(image.getbands())
