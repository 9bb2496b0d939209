"""Distances between two sets of images, computed from their features, in NumPy and float64.

Features are arrays (N, D): one row for each image. The functions take any real dtype and compute in float64.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path

BLOCK_ROWS = 1024  # rows of a block of pairwise distances, so that memory does not grow with N squared


FEATURES_KEYS = ("features_name", "features_fingerprint")


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features, float64, and the number of images (None: unknown)."""

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None
    features: tuple[str, str] | None = None
    """Name and fingerprint of the `Extractor` of the features; None: unknown."""

    @cached_property
    def root(self) -> np.ndarray:
        """R (D, D) with R R^T = sigma."""
        values, vectors = np.linalg.eigh(self.sigma)
        return vectors * np.sqrt(values.clip(min=0))  # rounding makes some negative


def check_features(features, what: str = "features") -> np.ndarray:
    """The features as float64 (N, D). UserError unless they are real numbers, finite, with N >= 2."""
    features = np.asarray(features)
    if features.ndim != 2 or features.dtype.kind not in "fiub":
        raise UserError(f"{what}: expected numbers (images, features), not {features.dtype} {features.shape}.")
    if len(features) < 2:
        raise UserError(f"{what}: expected at least 2 images, not {len(features)}.")
    features = features.astype(np.float64, copy=False)
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).any(axis=1).sum())
        raise UserError(f"{what}: {bad} of {len(features)} rows are not finite. The network that made them has failed.")
    return features


def check_alike(a: np.ndarray, b: np.ndarray) -> None:
    """UserError unless both have the same number of features."""
    if a.shape[-1] != b.shape[-1]:
        raise UserError(
            f"One set has {a.shape[-1]} features an image, the other {b.shape[-1]}. Give --features that made both."
        )


def statistics(features) -> Statistics:
    """Mean and covariance (with N - 1 in its denominator) of features (N, D)."""
    features = check_features(features)
    return Statistics(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))


def statistics_of_blocks(blocks: Iterable[np.ndarray]) -> Statistics:
    """`statistics` of features that come in blocks (n, D), without all of them in memory.

    Sums are taken about the mean of the first block, so that a large mean costs no digits.
    """
    count, center, total, products = 0, None, 0.0, 0.0
    for block in blocks:
        block = np.asarray(block, np.float64)
        center = block.mean(axis=0) if center is None else center
        block = block - center
        count, total, products = count + len(block), total + block.sum(axis=0), products + block.T @ block
    if count < 2:
        raise UserError(f"Expected at least 2 images, not {count}.")
    return Statistics(center + total / count, (products - np.outer(total, total) / count) / (count - 1), count)


def statistics_fingerprint(values: Statistics) -> str:
    """SHA-256 (hex) of mu and sigma."""
    return hashlib.sha256(values.mu.tobytes() + np.ascontiguousarray(values.sigma).tobytes()).hexdigest()


def fid(a: Statistics, b: Statistics) -> float:
    """Frechet distance between two normal distributions (Heusel et al. 2017, eq. 6):

    |mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)).

    With sigma_b = R R^T, the trace of the root is the sum of the roots of the eigenvalues of R^T sigma_a R, which is
    symmetric and has the eigenvalues of sigma_a sigma_b.
    """
    check_alike(a.mu, b.mu)
    eigenvalues = np.linalg.eigvalsh(b.root.T @ a.sigma @ b.root).clip(min=0)  # rounding makes some negative
    trace = np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.sqrt(eigenvalues).sum()
    return max(0.0, float(np.sum((a.mu - b.mu) ** 2) + trace))  # rounding makes some negative


def polynomial_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased estimate of the squared MMD (Gretton et al. 2012, eq. 3) with the kernel (x.y / D + 1)^3.

    a: (N, D), b: (M, D). It can be negative.
    """

    def kernel_sum(x, y) -> float:
        blocks = (x[i : i + BLOCK_ROWS] for i in range(0, len(x), BLOCK_ROWS))
        return sum(((block @ y.T / y.shape[1] + 1) ** 3).sum() for block in blocks)

    def other_pairs(x) -> float:
        """Mean of the kernel over all pairs of different images."""
        same = ((np.square(x).sum(axis=1) / x.shape[1] + 1) ** 3).sum()
        return (kernel_sum(x, x) - same) / (len(x) * (len(x) - 1))

    return float(other_pairs(a) + other_pairs(b) - 2 * kernel_sum(a, b) / (len(a) * len(b)))


def kid(
    a,
    b,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    progress: Callable[[int], None] | None = None,
) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018): mean and standard deviation of `polynomial_mmd` over random subsets.

    Args:
        a, b: features (N, D) and (M, D).
        subsets: number of subsets.
        subset_size: images of each set in a subset, drawn without replacement.
        seed: of numpy.random.RandomState. torch-fidelity's default is 2020.
        progress: called with the number of subsets done.

    Raises:
        UserError: a set has fewer images than `subset_size`.
    """
    a, b = check_features(a), check_features(b)
    check_alike(a, b)
    if min(len(a), len(b)) < subset_size:
        raise UserError(
            f"The kernel distance needs {subset_size} images of each set (subset_size), not {len(a)} and {len(b)}."
        )
    draw = np.random.RandomState(seed)
    values = []
    for number in range(subsets):
        part = a[draw.choice(len(a), subset_size, replace=False)]
        values.append(polynomial_mmd(part, b[draw.choice(len(b), subset_size, replace=False)]))
        if progress is not None:
            progress(number + 1)
    return float(np.mean(values)), float(np.std(values))


def pairwise_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, M) between the rows of a (N, D) and b (M, D)."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(squares.clip(min=0))


def neighbour_radii(features: np.ndarray, k: int, done: Callable[[int], None] = lambda rows: None) -> np.ndarray:
    """Distance (N,) of each row to its k-th nearest other row. done: called with the number of rows of each block."""
    radii = []
    for start in range(0, len(features), BLOCK_ROWS):
        block = features[start : start + BLOCK_ROWS]
        # The nearest row, at distance 0, is the row itself.
        radii.append(np.partition(pairwise_distances(block, features), k, axis=1)[:, k])
        done(len(block))
    return np.concatenate(radii)


@dataclass(frozen=True)
class Manifold:
    """How two sets cover each other, each number in [0, 1] but for density, which can exceed 1."""

    precision: float
    """Share of generated images within the k-neighbour ball of a real image (Kynkaanniemi et al. 2019, eq. 2)."""
    recall: float
    """Share of real images within the k-neighbour ball of a generated image."""
    density: float
    """Mean number of real balls around a generated image, divided by k (Naeem et al. 2020, eq. 3)."""
    coverage: float
    """Share of real images whose ball holds a generated image (Naeem et al. 2020, eq. 5)."""


def manifold(real, generated, k: int = 3, progress: Callable[[float], None] | None = None) -> Manifold:
    """Precision, recall, density and coverage of generated features (M, D) for real ones (N, D).

    k: the ball of an image reaches to its k-th nearest neighbour in its own set. progress: called with the percentage
    done. Raises UserError for sets of k images or fewer.
    """
    real, generated = check_features(real, "real features"), check_features(generated, "generated features")
    check_alike(real, generated)
    if min(len(real), len(generated)) <= k:
        raise UserError(f"k = {k}: expected fewer neighbours than images ({len(real)} and {len(generated)}).")
    rows, total = 0, len(real) + 2 * len(generated)

    def done(more: int) -> None:
        nonlocal rows
        rows += more
        if progress is not None:
            progress(100 * rows / total)

    real_radii, generated_radii = neighbour_radii(real, k, done), neighbour_radii(generated, k, done)
    covering, covered, recalled = 0, np.zeros(len(real), bool), np.zeros(len(real), bool)
    precise = 0
    for start in range(0, len(generated), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        distances = pairwise_distances(generated[part], real)
        inside = distances <= real_radii
        precise += inside.any(axis=1).sum()
        covering += inside.sum()
        covered |= inside.any(axis=0)
        recalled |= (distances <= generated_radii[part, None]).any(axis=0)
        done(len(distances))
    return Manifold(
        precision=float(precise / len(generated)),
        recall=float(recalled.mean()),
        density=float(covering / (k * len(generated))),
        coverage=float(covered.mean()),
    )


def fid_interval(
    features, reference: Statistics, repeats: int = 100, seed: int = 0, progress: Callable[[int], None] | None = None
) -> tuple[float, float]:
    """A 95% bootstrap interval of `fid(statistics(features), reference)`.

    The images are drawn again with replacement `repeats` times (Efron 1979). Repeated images make every drawn set look
    less varied than the images are, so the distances are shifted by the difference between their mean and the distance
    of the images themselves. progress: called with the number of repeats done.
    """
    features = check_features(features)
    check_alike(features, reference.mu)
    draw, count = np.random.default_rng(seed), len(features)
    rooted = features @ reference.root  # its covariance has the eigenvalues that `fid` needs

    def distance(rows) -> float:
        x, y = features[rows], rooted[rows]
        x_mean, y = x.mean(axis=0), (y - y.mean(axis=0)) / np.sqrt(count - 1)
        gram = y.T @ y if count > y.shape[1] else y @ y.T  # the smaller one: both have the same positive eigenvalues
        roots = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
        traces = np.square(x - x_mean).sum() / (count - 1) + np.trace(reference.sigma)
        return max(0.0, float(np.sum((x_mean - reference.mu) ** 2) + traces - 2 * roots))

    drawn = []
    for number in range(repeats):
        drawn.append(distance(draw.integers(count, size=count)))
        if progress is not None:
            progress(number + 1)
    low, high = np.quantile(drawn, (0.025, 0.975)) - np.mean(drawn) + distance(np.arange(count))
    return max(0.0, float(low)), float(high)


def save_statistics(path: str | Path, values: Statistics) -> None:
    """Write `mu` and `sigma`, the names that other programs use, into an .npz file; and what else is known: `count`,
    `features_name` and `features_fingerprint`."""
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez(file, **statistics_arrays(values))


def statistics_arrays(values: Statistics) -> dict[str, np.ndarray]:
    """The arrays of `save_statistics`."""
    arrays = {"mu": values.mu, "sigma": values.sigma}
    if values.count is not None:
        arrays["count"] = np.int64(values.count)
    if values.features is not None:
        arrays |= dict(zip(FEATURES_KEYS, map(np.array, values.features), strict=True))
    return arrays


def load_statistics(path: str | Path) -> Statistics:
    """Read `mu` (D,) and `sigma` (D, D) from an .npz file, and what else `save_statistics` wrote. UserError if they are
    not there."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
            count = int(file["count"]) if "count" in file else None
            known = all(name in file for name in FEATURES_KEYS)
            features = tuple(str(file[name]) for name in FEATURES_KEYS) if known else None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no statistics, the arrays mu and sigma in an .npz file ({error}).") from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not np.isfinite(sigma).all() or not np.isfinite(mu).all():
        raise UserError(f"{path}: expected finite mu (D,) and sigma (D, D), not {mu.shape} and {sigma.shape}.")
    return Statistics(mu, sigma, count, features)
