"""The training images nearest to generated ones, and how many generated images are copies of training images.

An image is a copy if its distance to the nearest training image is less than a third of its distance to the second
nearest (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize"). Real images that
were held out from training give the figures to compare with: data sets may hold some images almost twice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jax_ddpm.data import ShardedImages
from jax_ddpm.evaluation.distances import BLOCK_ROWS, pairwise_distances
from jax_ddpm.evaluation.extractors import PIXELS, Extractor
from jax_ddpm.report import table
from jax_ddpm.report.pictures import levels
from jax_ddpm.spec.errors import UserError

COPY_BELOW = 1 / 3  # ratio of the distances to the nearest and to the second nearest training image
COLUMNS = 16  # images in the picture

Images = np.ndarray | ShardedImages


@dataclass(frozen=True)
class Nearest:
    """The two nearest training images of each of N images."""

    indices: np.ndarray
    """Their indices, int64 (N, 2), the nearest first."""
    distances: np.ndarray
    """Their Euclidean distances, float64 (N, 2)."""

    @property
    def ratios(self) -> np.ndarray:
        """d_1 / d_2 of each image, in [0, 1], float64 (N,); 0 for an image that equals a training image."""
        first, second = self.distances.T
        return np.divide(first, second, out=np.zeros_like(first), where=first > 0)

    @property
    def copies(self) -> float:
        """Share of the images whose ratio is less than COPY_BELOW."""
        return float(np.mean(self.ratios < COPY_BELOW))

    def as_dict(self) -> dict[str, float]:
        """The figures as JSON can hold them."""
        return {"copies": self.copies, "median_ratio": float(np.median(self.ratios))}


@dataclass(frozen=True)
class NearestImages:
    """Nearest training images of generated images, and of as many held-out images, by features and by pixels."""

    generated: dict[str, Nearest]
    """By the name of the features; `pixels` is always there."""
    held_out: dict[str, Nearest]
    """Likewise; empty if no images were held out."""
    num_train: int
    """Number of training images."""

    def as_dict(self) -> dict:
        """The figures as JSON can hold them."""
        return {
            "num_train": self.num_train,
            "generated": {name: nearest.as_dict() for name, nearest in self.generated.items()},
            "held_out": {name: nearest.as_dict() for name, nearest in self.held_out.items()},
        }

    def __str__(self) -> str:
        count = len(self.generated["pixels"].ratios)
        lines = [f"Nearest of {self.num_train:,} training images (d_1, d_2: distances to the nearest two)"]
        lines.append(f"{'':38}copies, d_1/d_2 < 1/3   median d_1/d_2")
        for what, found in ((f"{count:,} images", self.generated), ("held-out images", self.held_out)):
            for name, nearest in found.items():
                label = f"{len(nearest.ratios):,} {what}" if what == "held-out images" else what
                row = f"{label}, by {name}"
                lines.append(f"{row:38}{nearest.copies:>21.2%}   {np.median(nearest.ratios):14.3f}")
        return "\n".join(lines)


def two_nearest(rows, others, progress: Callable[[int], None] | None = None) -> Nearest:
    """The two rows of `others` that are nearest to each of `rows`, in float64. Of equal ones, the first.

    Args:
        rows: (N, ...), such as features (N, D), or uint8 images (N, H, W, C).
        others: (M, ...) likewise; may be `ShardedImages`, which are read block by block.
        progress: called with the number of `others` done, after each block.

    Raises:
        UserError: fewer than two `others`.
    """
    if len(others) < 2:
        raise UserError(f"The nearest two training images are wanted, but there are {len(others)}.")
    distances, indices = np.full((len(rows), 2), np.inf), np.zeros((len(rows), 2), np.int64)
    for start in range(0, len(others), BLOCK_ROWS):
        block = flat(others[start : start + BLOCK_ROWS])
        for first in range(0, len(rows), BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            here = pairwise_distances(flat(rows[part]), block)
            candidates, where = [distances[part]], [indices[part]]
            for _ in range(min(2, len(block))):
                nearest = here.argmin(axis=1)[:, None]
                candidates.append(np.take_along_axis(here, nearest, axis=1))
                where.append(nearest + start)
                np.put_along_axis(here, nearest, np.inf, axis=1)
            distances[part], indices[part] = smallest_two(np.hstack(candidates), np.hstack(where))
        if progress is not None:
            progress(start + len(block))
    # Above, distances are differences of large squares. Those of the nearest two are computed again without rounding.
    for first in range(0, len(rows), BLOCK_ROWS):
        part = slice(first, first + BLOCK_ROWS)
        near = [flat(others[indices[part, column]]) for column in (0, 1)]
        exact = np.stack([np.linalg.norm(flat(rows[part]) - other, axis=1) for other in near], axis=1)
        distances[part], indices[part] = smallest_two(exact, indices[part])
    return Nearest(indices, distances)


def flat(rows) -> np.ndarray:
    """Rows as float64 (N, D)."""
    return np.asarray(rows).reshape(len(rows), -1).astype(np.float64)


def smallest_two(distances: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest two of each row (N, K), and their indices, in order."""
    order = np.argsort(distances, axis=1, kind="stable")[:, :2]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


def as_levels(images: Images) -> Images:
    """Images as uint8, unchanged or from floats around [-1, 1]. Raises UserError for anything else."""
    return images if isinstance(images, ShardedImages) or images.dtype == np.uint8 else levels(images, 4)


def nearest_images(
    images: Images,
    train: Images,
    held_out: Images | None = None,
    extractor: Extractor = PIXELS,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> NearestImages:
    """The nearest training images of images, and of as many held-out images, by pixels and by features.

    Args:
        images: uint8 (N, H, W, C), or floats around [-1, 1], such as those of `sample`, which are rounded to levels.
        train: the images that the model was trained on, (M, H, W, C), of the same kinds.
        held_out: other real images, (K, H, W, C); the first N of them are used.
        extractor: the features.
        progress: called with what is done, how many images of it are, and how many there are.

    Raises:
        UserError: images of another shape than the training images or of another dtype, or fewer than two training
            images.
    """
    images, train = as_levels(images), as_levels(train)
    held_out = None if held_out is None else as_levels(held_out)
    if images.shape[1:] != train.shape[1:]:
        raise UserError(
            f"The images have the shape {tuple(images.shape[1:])}, but the training images {tuple(train.shape[1:])}."
        )
    sets = {"generated": images, "held-out": None if held_out is None else held_out[: len(images)]}
    sets = {name: rows for name, rows in sets.items() if rows is not None and len(rows)}
    found: dict[str, dict[str, Nearest]] = {name: {} for name in ("generated", "held-out")}

    def report(what: str, total: int) -> Callable[[int], None] | None:
        return None if progress is None else (lambda done: progress(what, done, total))

    if extractor.name != PIXELS.name:
        others = extractor(train, progress=report("features of training images", len(train)))
        for name, rows in sets.items():
            search = report(f"nearest by {extractor.name}, {name}", len(train))
            found[name][extractor.name] = two_nearest(extractor(rows), others, search)
    for name, rows in sets.items():
        found[name]["pixels"] = two_nearest(rows, train, report(f"nearest by pixels, {name}", len(train)))
    return NearestImages(found["generated"], found["held-out"], len(train))


def picture(images: Images, train: Images, found: NearestImages, columns: int = COLUMNS) -> Image.Image:
    """Images above their nearest training images: those with the smallest d_1/d_2, which is written above each.

    The first of the features, those of the extractor if there are any, chooses and orders the images.
    """
    images, train = as_levels(images), as_levels(train)
    ratios = next(iter(found.generated.values())).ratios
    chosen = np.argsort(ratios, kind="stable")[:columns]
    rows = [images[chosen]]
    rows += [train[nearest.indices[chosen, 0]] for nearest in found.generated.values()]
    first, *_ = found.generated
    labels = [f"image, d_1/d_2 by {first}", *(f"nearest by {name}" for name in found.generated)]
    return table(np.stack(rows), [f"{ratio:.2f}" for ratio in ratios[chosen]], row_labels=labels)
