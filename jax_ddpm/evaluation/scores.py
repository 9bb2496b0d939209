"""`Scores`: all distances between a set of images and a reference, beside those of real images."""

from dataclasses import asdict, dataclass, fields
from html import escape
from typing import Any

import numpy as np

from jax_ddpm.evaluation import distances
from jax_ddpm.evaluation.classes import ClassScores, class_rows, classes_of
from jax_ddpm.evaluation.distances import Statistics
from jax_ddpm.evaluation.extractors import BATCH_SIZE
from jax_ddpm.evaluation.image_sets import ImageSet, check_shape, image_set
from jax_ddpm.evaluation.progress import Progress, named
from jax_ddpm.evaluation.reference import MAX_FEATURES, MAX_KEPT, Reference, check_features_of
from jax_ddpm.spec.errors import UserError

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance
NEIGHBOURS = 3
COMPARABLE = 10_000  # images from which on the FID is usually reported
NAMES = {
    "fid": "FID",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class_accuracy": "class accuracy",
}


@dataclass(frozen=True, repr=False)
class Scores:
    """Distances between a set of images and a reference. None: cannot be computed; `notes` say why."""

    num_images: int | None
    """Images that were compared with the reference."""
    num_reference: int | None
    """Images of the reference."""
    extractor: dict[str, str]
    """name, description and fingerprint of the features."""
    reference: dict[str, str]
    """name and fingerprint of the reference."""
    fid: float | None = None
    """Frechet distance (Heusel et al. 2017); less is better."""
    fid_interval: tuple[float, float] | None = None
    """95% bootstrap interval of the FID."""
    kid: float | None = None
    """Kernel distance (Binkowski et al. 2018), mean over subsets; less is better. It can be negative."""
    kid_standard_deviation: float | None = None
    """Standard deviation over the subsets."""
    precision: float | None = None
    """Share of the images that are near real ones (Kynkaanniemi et al. 2019), with 3 neighbours."""
    recall: float | None = None
    """Share of the real images that are near generated ones."""
    density: float | None = None
    """Naeem et al. 2020, eq. 3; about 1 for real images."""
    coverage: float | None = None
    """Naeem et al. 2020, eq. 5: share of the real images that have a generated one near them."""
    notes: tuple[str, ...] = ()
    """What limits these numbers, one sentence each."""
    floor: "Scores | None" = None
    """The same numbers of held-out real images: what a perfect model would get."""
    class_accuracy: float | None = None
    """Share of the images that the classifier gives the class they were drawn for."""
    classes: tuple[ClassScores, ...] = ()
    """The numbers of each class, if the images and the reference have labels."""

    def __repr__(self) -> str:
        numbers = [
            f"{name} {self.value_text(field)}" for field, name in NAMES.items() if getattr(self, field) is not None
        ]
        count = "an unknown number of" if self.num_images is None else f"{self.num_images:,}"
        return f"Scores of {count} images: {', '.join(numbers)}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def columns(self) -> list[tuple[str, "Scores"]]:
        return [("images", self), *([("real images", self.floor)] if self.floor else [])]

    def rows(self) -> list[list[str]]:
        """The table that `str` shows, as text: a row for each number."""
        columns = self.columns()
        rows = [["", *(name for name, _ in columns)]]
        for field, name in NAMES.items():
            if any(getattr(scores, field) is not None for _, scores in columns):
                rows.append([name, *(scores.value_text(field) for _, scores in columns)])
        counts = ["unknown" if scores.num_images is None else f"{scores.num_images:,}" for _, scores in columns]
        return [*rows, ["number", *counts]]

    def value_text(self, field: str) -> str:
        value = getattr(self, field)
        if value is None:
            return "-"
        if field == "fid" and self.fid_interval:
            return f"{value:.4g} [{self.fid_interval[0]:.4g}, {self.fid_interval[1]:.4g}]"
        if field == "kid" and self.kid_standard_deviation is not None:
            return f"{value:.3g} +- {self.kid_standard_deviation:.2g}"
        return f"{value:.3f}"

    def lines(self) -> list[str]:
        """What the numbers were computed from, and notes."""
        count = "an unknown number of" if self.num_reference is None else f"{self.num_reference:,}"
        reference, extractor = self.reference, self.extractor
        return [
            f"Reference: {reference['name']}, {count} images (hash {reference['fingerprint'][:8]})",
            f"Features: {extractor['name']}, {extractor['description']} (hash {extractor['fingerprint'][:8]})",
            *self.notes,
        ]

    def __str__(self) -> str:
        tables = [self.rows(), *([class_rows(self.classes)] if self.classes else [])]
        return "\n".join([*(line for rows in tables for line in [*aligned(rows), ""]), *self.lines()])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        tables = [self.rows(), *([class_rows(self.classes)] if self.classes else [])]
        return f"{''.join(map(html_table, tables))}<p>{'<br>'.join(map(escape, self.lines()))}</p>"


def aligned(rows: list[list[str]]) -> list[str]:
    """A table as lines of text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def html_table(rows: list[list[str]]) -> str:
    head, *rows = ([escape(cell) for cell in row] for row in rows)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><tr>{top}</tr>{body}</table>"


def score(
    images: Any,
    reference: Reference,
    *,
    with_floor: bool = True,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Scores:
    """All distances between images and a reference.

    Args:
        images: uint8 images (N, H, W, C), their features (N, D) by the reference's extractor, an `ImageSet`, or
            `Statistics` of features, which give the FID alone.
        reference: from `make_reference`.
        with_floor: also the numbers of as many held-out real images, if the reference has some.
        batch_size: images in a batch of the extractor.
        progress: called with what is computed, how much of it is done, and how much there is.

    Raises:
        UserError: images of another size or with another number of features than the reference, fewer than 2 images,
            or numbers that are not finite.
    """
    same = isinstance(images, ImageSet) and images.fingerprint == reference.fingerprint
    labels, pixels = images.labels if isinstance(images, ImageSet) else None, None
    if isinstance(images, ImageSet):
        images = images.statistics if images.images is None else images.images
    if isinstance(images, Statistics):
        return score_statistics(images, reference)
    if np.ndim(images) == 4:
        check_shape(found := image_set(images), reference.image_shape, "the reference")
        same = same or found.fingerprint == reference.fingerprint
        if found.count < 2:
            raise UserError(f"images: expected at least 2, not {found.count}.")
        pixels = found.images
        images = reference.extractor(found.images, batch_size, named("features", found.count, progress))
    features = distances.check_features(images)
    values, notes = {}, ["The images are those of the reference: a set against itself."] if same else []
    fid_of(features, reference, values, notes, progress)
    if reference.features is None:
        notes.append("KID, precision and recall need the reference's images: it has only statistics.")
    else:
        distances.check_alike(features, reference.features)
        kid_of(features, reference.features, values, notes, progress)
        manifold_of(features, reference.features, values, notes, progress)
        if labels is not None and reference.labels is not None:
            classes_of(pixels, labels, features, reference, values, notes, progress)
    floor = floor_of(reference, len(features), progress) if with_floor else None
    if with_floor:
        notes += floor_notes(reference, len(features), floor)
    return scores(reference, len(features), values, notes, floor)


def scores(reference: Reference, count: int | None, values: dict, notes: list[str], floor: Scores | None) -> Scores:
    extractor = reference.extractor
    about = {"name": extractor.name, "description": extractor.description, "fingerprint": extractor.fingerprint}
    source = {"name": reference.name, "fingerprint": reference.fingerprint}
    return Scores(count, reference.count, about, source, **values, notes=tuple(notes), floor=floor)


def score_statistics(given: Statistics, reference: Reference) -> Scores:
    """The FID of statistics, without anything that needs images."""
    check_features_of("The set that is evaluated", given, reference.extractor)
    notes = ["KID, precision, recall and the interval need images: only their statistics are given."]
    if reference.statistics is None:
        raise UserError(f"The FID needs statistics, and there are none of {reference.name}.")
    return scores(reference, given.count, {"fid": distances.fid(given, reference.statistics)}, notes, None)


def fid_of(features: np.ndarray, reference: Reference, values: dict, notes: list[str], progress) -> None:
    """Add the FID, its interval, and notes about the number of images."""
    count, size = features.shape
    if reference.statistics is None:
        notes.append(f"FID: not computed for more than {MAX_FEATURES:,} features, and there are {size:,}: use others.")
        return
    if progress is not None:
        progress("FID", 0, 1)
    values["fid"] = distances.fid(distances.statistics(features), reference.statistics)
    repeats = 100 if min(count, size) <= 1000 else 30
    progress_of = named("interval", repeats, progress)
    values["fid_interval"] = distances.fid_interval(features, reference.statistics, repeats, progress=progress_of)
    counts = {"images": count, "reference images": reference.count}
    few = [f"{number:,} {name}" for name, number in counts.items() if number is not None and number <= size]
    if few:
        notes.append(
            f"FID: {' and '.join(few)} are too few for {size:,} features: their covariance needs {size + 1:,} or more, "
            f"and numbers that others can compare {max(COMPARABLE, 2 * size):,}."
            + (" The KID works with fewer." if count > NEIGHBOURS else " Do not read anything into this FID.")
        )
    if size < count < COMPARABLE:
        notes.append(f"FID: it falls with the number of images. Compare it only with that of {count:,} images.")


def kid_of(features: np.ndarray, real: np.ndarray, values: dict, notes: list[str], progress) -> None:
    """Add the KID."""
    smallest = min(len(features), len(real))
    size = SUBSET_SIZE if smallest >= SUBSET_SIZE else smallest // 2
    if size < 2:
        notes.append(f"KID: {smallest} images are too few, it needs 4.")
        return
    if size < SUBSET_SIZE:
        notes.append(f"KID: over subsets of {size} images, since there are fewer than {SUBSET_SIZE:,}.")
    found = distances.kid(features, real, SUBSETS, size, progress=named("KID", SUBSETS, progress))
    values["kid"], values["kid_standard_deviation"] = found


def manifold_of(features: np.ndarray, real: np.ndarray, values: dict, notes: list[str], progress) -> None:
    """Add precision, recall, density and coverage, from as many real images as there are others."""
    count = min(len(features), len(real))
    if count <= NEIGHBOURS:
        notes.append(f"Precision and recall: {count} images are too few, they need {NEIGHBOURS + 1}.")
        return
    if count < len(features):
        notes.append(f"Precision and recall: of {count:,} images of each set.")
    found = distances.manifold(real[:count], features[:count], NEIGHBOURS, progress=named("neighbours", 100, progress))
    values |= {field.name: getattr(found, field.name) for field in fields(found)}


def floor_of(reference: Reference, count: int, progress: Progress | None) -> Scores | None:
    """The scores of `count` held-out real images, or of as many as there are; None if there are none."""
    if reference.held_out is None or len(reference.held_out) < 2:
        return None
    count = min(count, len(reference.held_out))
    if count not in reference.floors:
        reference.floors[count] = score(reference.held_out[:count], reference, with_floor=False, progress=progress)
    return reference.floors[count]


def floor_notes(reference: Reference, count: int, floor: Scores | None) -> list[str]:
    """What to know about the floor."""
    if floor is None:
        none = f"No numbers of real images beside these: {reference.name} has no held-out images."
        return [f"{none} train:DATASET has some; DATASET can be folder:PATH or a .npz file."]
    if floor.num_images < min(count, MAX_KEPT):
        few = f"Real images: only {floor.num_images:,} are held out, fewer than {count:,}, so their FID is higher than"
        return [f"{few} that of {count:,} would be."]
    return []
