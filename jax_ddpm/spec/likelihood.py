"""What the likelihoods of both frameworks share: the result, the timesteps to evaluate, the check of the images."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jax_ddpm.spec.errors import require


class OverImages:
    """Mean and standard error of `per_image`, float64 (N,) in bits per dimension."""

    per_image: np.ndarray

    @property
    def value(self) -> float:
        """The mean of `per_image`: bits per dimension of the images."""
        return float(self.per_image.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of `value`, from the spread between the images. NaN for one image.

        It includes the choice of the images and everything that is drawn for each of them.
        """
        count = len(self.per_image)
        return float(self.per_image.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


@dataclass(frozen=True)
class Bound(OverImages):
    """The variational bound of N images in bits per dimension, term by term: Ho et al. 2020, eq. 5.

    The timesteps are divided into K ranges. Each image has one timestep in each range. If all timesteps were evaluated,
    K = T and each range holds one timestep.
    """

    edges: np.ndarray
    """Range k is the timesteps from edges[k] to edges[k + 1] - 1: integers (K + 1,), from 0 to T."""
    t: np.ndarray
    """The timesteps that were evaluated: integers (N, K)."""
    terms: np.ndarray
    """L_t at these timesteps: float64 (N, K). Column 0 is L_0, the decoder's."""
    prior: np.ndarray
    """L_T: float64 (N,)."""

    @cached_property
    def per_image(self) -> np.ndarray:
        """The bound of each image: float64 (N,). Each term counts as often as its range has timesteps."""
        return self.prior + self.terms @ np.diff(self.edges)

    @property
    def mean_terms(self) -> np.ndarray:
        """L_t by range, mean over the images: float64 (K,)."""
        return self.terms.mean(axis=0)


@dataclass(frozen=True)
class FlowLikelihood(OverImages):
    """The likelihood of N images by the probability-flow ODE in bits per dimension. Each field is float64 (N,)."""

    decoder: np.ndarray
    """L_0, the decoder's, as in a `Bound`."""
    state: np.ndarray
    """log2 q(x | x_0) - log2 p(x) for x, the state at t = 0, with the density p of the ODE."""

    @property
    def per_image(self) -> np.ndarray:
        """The bits of each image: float64 (N,)."""
        return self.decoder + self.state


def strata(timesteps: int, count: int | None) -> np.ndarray:
    """Edges of `count` ranges of timesteps: integers (count + 1,) from 0 to T. None: T ranges.

    The first range is t = 0 alone. The others grow by a constant factor, as far as whole numbers allow, because L_t
    falls steeply with t. Raises UserError for a count out of range.
    """
    count = timesteps if count is None else count
    least = min(2, timesteps)
    require(least <= count <= timesteps, "num_timesteps", count, f"expected {least} to T = {timesteps}")
    growing = np.rint(np.geomspace(1, timesteps, count)).astype(int)
    return np.concatenate([[0], np.maximum(np.arange(1, count + 1), growing)])


def timesteps_in(edges: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One timestep in each range for each row of uniform numbers in [0, 1): int32 (N, K)."""
    return (edges[:-1] + np.floor(uniforms.astype(np.float64) * np.diff(edges))).astype(np.int32)


def check_levels(images, image_shape: tuple[int, int, int] | None) -> np.ndarray:
    """Require uint8 (N, *image_shape), N at least 1. image_shape None: any. Raises UserError."""
    images = np.asarray(images)
    wanted = ("N", "H", "W", "C") if image_shape is None else ("N", *image_shape)
    fits = images.ndim == 4 and len(images) and (image_shape is None or images.shape[1:] == tuple(image_shape))
    require(fits, "images", images.shape, f"expected the shape ({', '.join(map(str, wanted))})")
    expected = "expected uint8: a likelihood is the probability of 8-bit levels"
    require(images.dtype == np.uint8, "dtype of images", images.dtype, expected)
    return images
