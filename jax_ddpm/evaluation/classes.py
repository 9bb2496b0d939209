"""Scores of each class, and whether a classifier finds in drawn images the class that they were drawn for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_ddpm.evaluation import distances
from jax_ddpm.evaluation.image_sets import Images, ImageSet
from jax_ddpm.evaluation.progress import Progress
from jax_ddpm.evaluation.reference import Reference
from jax_ddpm.spec.labels import label_array
from jax_ddpm.spec.model_info import ModelInfo

SMALLEST = 4  # images of a class that are compared
MAX_FEATURES = 1024  # for a FID of each class
SUBSETS = 100  # of the kernel distance


@dataclass(frozen=True)
class ClassScores:
    """Numbers of the images of one class, compared with real images of this class."""

    name: str
    num_images: int
    accuracy: float | None = None
    """Share of the images that the classifier gives this class; None without a classifier."""
    fid: float | None = None
    """Frechet distance to the real images of the class. It falls with the number of images."""
    kid: float | None = None
    """Kernel distance, mean over subsets of half of the images."""


def samples_with_labels(images: np.ndarray, info: ModelInfo, reference: Reference) -> ImageSet:
    """Images uint8 (N, H, W, C) that `draw_samples` drew, with their classes in the numbering of the reference.

    Where both name their classes, classes of one name are the same.
    """
    labels = label_array(info, None, len(images)) if info.network.label_count else None
    if labels is not None and info.class_names and reference.class_names:
        numbers = {name: number for number, name in enumerate(reference.class_names)}
        labels = np.array([numbers.get(name, -1) for name in info.class_names], np.int32)[labels]
    return ImageSet("samples", images, labels=labels)


def classes_of(
    images: Images | None,
    labels: np.ndarray,
    features: np.ndarray,
    reference: Reference,
    values: dict[str, Any],
    notes: list[str],
    progress: Progress | None = None,
) -> None:
    """Add the class accuracy and the scores of each class to `values`. Labels that the reference lacks do not count."""
    found = predicted(images, reference)
    classes = []
    numbers = np.intersect1d(labels, reference.labels)
    for done, number in enumerate(numbers):
        if progress is not None:
            progress("classes", done, len(numbers))
        mine, real = labels == number, features_of_class(reference, number)
        accuracy = None if found is None else float(np.mean(found[mine] == number))
        classes.append(scores_of_class(name_of(number, reference.class_names), features[mine], real, accuracy))
    known = np.isin(labels, numbers)
    if found is not None and known.any():
        values["class_accuracy"] = float(np.mean((found == labels)[known]))
    values["classes"] = tuple(classes)
    if any(each.fid is not None and each.num_images <= features.shape[1] for each in classes):
        notes.append(
            f"FID of a class: of few images for {features.shape[1]:,} features. Compare it only with that of another "
            "model with as many images."
        )


def predicted(images: Images | None, reference: Reference) -> np.ndarray | None:
    """The class of each image by the classifier of the reference; None if its features are of none."""
    return None if images is None or reference.extractor.classify is None else reference.extractor.classify(images)


def features_of_class(reference: Reference, number: int) -> np.ndarray:
    return reference.features[reference.labels == number]


def name_of(number: int, names: Sequence[str] | None) -> str:
    return names[number] if names and number < len(names) else str(number)


def scores_of_class(name: str, features: np.ndarray, real: np.ndarray, accuracy: float | None) -> ClassScores:
    """The scores of one class from features (N, D) and those of real images (M, D)."""
    smallest, fid, kid = min(len(features), len(real)), None, None
    if smallest >= SMALLEST:
        kid, _ = distances.kid(features, real, SUBSETS, min(1000, smallest // 2))
        if features.shape[1] <= MAX_FEATURES:
            fid = distances.fid(distances.statistics(features), distances.statistics(real))
    return ClassScores(name, len(features), accuracy, fid, kid)


def class_rows(classes: Sequence[ClassScores]) -> list[list[str]]:
    """A table of text: a row for each class."""
    rows = [["class", "images", "accuracy", "FID", "KID"]]
    for each in classes:
        numbers = [(each.accuracy, "{:.3f}"), (each.fid, "{:.4g}"), (each.kid, "{:.3g}")]
        texts = ["-" if value is None else form.format(value) for value, form in numbers]
        rows.append([each.name, f"{each.num_images:,}", *texts])
    return rows
