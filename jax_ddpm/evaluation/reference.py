"""`Reference`: the real images that others are compared with, as statistics and features, kept on disk."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.evaluation.distances import Statistics, load_statistics, save_statistics, statistics_of_blocks
from jax_ddpm.evaluation.extractors import BATCH_SIZE, Extractor
from jax_ddpm.evaluation.image_sets import ImageSet
from jax_ddpm.evaluation.progress import Progress, named
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path
from jax_ddpm.spec.files import cache_dir as user_cache_dir
from jax_ddpm.spec.text import one_line

MAX_KEPT = 10_000  # images whose features are kept, for KID, precision and recall
MAX_FEATURES = 4096  # a covariance of more takes too much memory and time
BLOCK = 2048  # images whose features are in memory while statistics are computed
SEED = 0  # of the choice of the kept images


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images, by one extractor."""

    name: str
    fingerprint: str
    """Of the images, or of the statistics."""
    extractor: Extractor
    count: int | None
    """Number of images; None if unknown."""
    image_shape: tuple[int, int, int] | None
    statistics: Statistics | None
    """Of the features of all images; None for more than MAX_FEATURES features."""
    features: np.ndarray | None
    """Of at most MAX_KEPT images, chosen at random: float64 (K, D). None if only statistics are known."""
    held_out: np.ndarray | None = None
    """Features of other real images, likewise."""
    floors: dict[int, Any] = field(default_factory=dict)
    """`Scores` of held-out images, by their number."""
    labels: np.ndarray | None = None
    """Class of each image that `features` has, int32 (K,); None without labels."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes; None if unknown."""


def make_reference(
    images: ImageSet,
    extractor: Extractor,
    cache_dir: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Reference:
    """The reference that a set of images is.

    What is computed is kept in `cache_dir`/evaluation, under a name that depends on the images and on the extractor.

    Args:
        images: the real images, or statistics of them. `images.held_out` gives the floor.
        extractor: makes the features.
        cache_dir: a folder. Default: that of data sets.
        batch_size: images in a batch of the extractor.
        log: called with a line if the folder cannot be written.
        progress: as in `score`.

    Raises:
        UserError: fewer than 2 images, features that are not finite, or statistics of other features.
    """
    about = {"name": images.name, "fingerprint": images.fingerprint, "extractor": extractor, "count": images.count}
    if images.images is None:
        check_features_of(images.name, images.statistics, extractor)
        return Reference(**about, image_shape=None, statistics=images.statistics, features=None)
    if images.count < 2:
        raise UserError(f"{images.name} has {images.count} image: expected at least 2.")
    cache = Cache(Path(cache_dir).expanduser() if cache_dir else user_cache_dir(), log)

    def kept(images: ImageSet, what: str) -> np.ndarray:
        return cache.features(images, extractor, batch_size, named(what, min(images.count, MAX_KEPT), progress))

    features = kept(images, "reference")
    few = features.shape[1] <= MAX_FEATURES
    statistics_progress = named("reference", images.count, progress)
    return Reference(
        **about,
        image_shape=images.image_shape,
        statistics=cache.statistics(images, extractor, features, batch_size, statistics_progress) if few else None,
        features=features,
        held_out=None if images.held_out is None else kept(images.held_out, "held-out images"),
        labels=None if images.labels is None else np.asarray(images.labels)[chosen_rows(images.count)],
        class_names=None if images.data is None else images.data.class_names,
    )


def check_features_of(name: str, values: Statistics, extractor: Extractor) -> None:
    """UserError if it is known that statistics are of other features than the extractor's."""
    if values.features is None or values.features[1] == extractor.fingerprint:
        return
    made, digest = values.features
    raise UserError(
        f"{name} holds statistics of the features {made} (hash {digest[:8]}), but the others are {extractor.name} "
        f"(hash {extractor.fingerprint[:8]}).\nGive --features {made}, as when the statistics were made."
    )


def chosen_rows(count: int) -> np.ndarray:
    """Rows of the images whose features are kept, in random order."""
    return np.random.default_rng(SEED).permutation(count)[:MAX_KEPT]


@dataclass(frozen=True)
class Cache:
    """Features and statistics on disk."""

    folder: Path
    log: Callable[[str], None]

    def path(self, images: ImageSet, extractor: Extractor, what: str) -> Path:
        key = f"{images.fingerprint} {extractor.fingerprint} {MAX_KEPT} {SEED}"
        return self.folder / "evaluation" / f"{what}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"

    def features(
        self, images: ImageSet, extractor: Extractor, batch_size: int, progress: Callable[[int], None] | None
    ) -> np.ndarray:
        """Features float64 (K, D) of the chosen images. Those of pixels are quick, and not kept."""
        path = self.path(images, extractor, "features")
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as file:
                    return np.asarray(file["features"], np.float64)
            except (OSError, ValueError, KeyError, EOFError):
                self.log(f"{path} is damaged: computing it again.")
        rows = chosen_rows(images.count)
        order = np.argsort(rows)  # files of images are read in order
        found = extractor(Rows(images.images, rows[order]), batch_size, progress)
        features = np.empty_like(found)
        features[order] = found
        if not np.isfinite(features).all():
            raise UserError(f"{extractor.name} gives features of {images.name} that are not finite.")
        if extractor.name != "pixels" and extractor.may_cache:
            single = features.astype(np.float32)
            values = single if (single == features).all() else features

            def write(draft: Path) -> None:
                with draft.open("wb") as file:
                    np.savez(file, features=values)

            self.write(path, write)
        return features

    def statistics(
        self,
        images: ImageSet,
        extractor: Extractor,
        kept: np.ndarray,
        batch_size: int,
        progress: Callable[[int], None] | None,
    ) -> Statistics:
        """Of all images. kept: features of the chosen ones."""
        path = self.path(images, extractor, "statistics")
        if path.exists():
            try:
                return load_statistics(path)
            except UserError:
                self.log(f"{path} is damaged: computing it again.")

        def blocks():
            for start in range(0, images.count, BLOCK):
                yield extractor(images.images[start : start + BLOCK], batch_size)
                if progress is not None:
                    progress(start + BLOCK)

        found = statistics_of_blocks(blocks() if images.count > len(kept) else [kept])
        if extractor.may_cache:
            self.write(path, lambda draft: save_statistics(draft, found))
        return found

    def write(self, path: Path, write: Callable[[Path], None]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as draft:
                write(draft)
        except OSError as error:
            self.log(f"Not kept for the next time: {path} cannot be written ({error.strerror or one_line(error)}).")


@dataclass(frozen=True)
class Rows:
    """Some rows of images, read when they are asked for."""

    images: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.images[self.rows[part]]
