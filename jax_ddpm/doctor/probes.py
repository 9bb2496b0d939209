"""Inputs that show what usual ones hide: small variance shows a wrong epsilon, a large mean a one-pass variance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from jax_ddpm.doctor.flax_side import FlaxNetwork
from jax_ddpm.doctor.forced import TOLERANCE, Check, layer_tolerance, run_ours
from jax_ddpm.doctor.records import LARGE_MEAN, SMALL_VARIANCE, Finding, relative_error
from jax_ddpm.doctor.torch_side import TorchNetwork

SMALL = 1e-2
"""The standard deviation for SMALL_VARIANCE."""
LARGE = 1e6
"""The mean for LARGE_MEAN, in standard deviations. In float64 a variance in two passes keeps ten digits there, in one
pass three."""
LARGE_MEAN_TOLERANCE = 1e-7
AFFINE = ("Linear", "Embedding", "Identity", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d")
"""Kinds of torch layers in which the scale of the input hides nothing."""


Probed = tuple[str, tuple[np.ndarray, ...], np.ndarray, np.ndarray, float]
"""Name of the probe, inputs, their output, our output, relative error."""


def probe(check: Check, their: TorchNetwork, our: FlaxNetwork) -> Probed | None:
    """The first probe on which the layers of a pair differ: arrays are in their layout."""
    inputs = tuple(check.pair.theirs.arrays)
    if (
        check.pair.theirs.kind in AFFINE
        or not inputs
        or not np.issubdtype(inputs[0].dtype, np.floating)
        or not inputs[0].size
    ):
        return None

    def with_first(array: np.ndarray) -> tuple[np.ndarray, ...]:
        """The inputs with another first one; those that are the same array, as in self-attention, change too."""
        return tuple(array if other is inputs[0] else other for other in inputs)

    def theirs(array: np.ndarray) -> np.ndarray:
        return their.run(check.pair.theirs, *with_first(array))

    def ours(array: np.ndarray) -> np.ndarray:
        return run_ours(our, check.pair, *with_first(array))

    for result in (small_variance(inputs[0], theirs, ours), large_mean(inputs[0], theirs, ours)):
        if result is not None and result[4] > layer_tolerance(check.pair, their, our):
            return result[0], with_first(result[1]), *result[2:]
    return None


def small_variance(x: np.ndarray, theirs: Callable, ours: Callable):
    std = x.std() or 1.0
    scaled = x * (SMALL / std)
    a, b = theirs(scaled), ours(scaled)
    error = relative_error(b, a)
    return (SMALL_VARIANCE, scaled, a, b, error) if error > TOLERANCE else None


def large_mean(x: np.ndarray, theirs: Callable, ours: Callable):
    """Only for layers of which a constant added to the input changes nothing. Their output without it is the judge."""
    std = x.std() or 1.0
    a = theirs(x)
    if relative_error(theirs(x + 10 * std), a) > 1e-9:
        return None
    shifted = x + LARGE * std
    b = ours(shifted)
    error = relative_error(b, a)
    return (LARGE_MEAN, shifted, a, b, error) if error > LARGE_MEAN_TOLERANCE else None


def probed(finding: Finding, result: tuple) -> Finding:
    """A finding of kind "layer" with what a probe showed."""
    name, inputs, theirs, ours, error = result
    return replace(
        finding,
        place="layer",
        error=error,
        their_inputs=inputs,
        our_inputs=inputs,
        their_output=theirs,
        our_output=ours,
        probe=name,
    )


def innermost(checks: Sequence[Check]) -> list[Check]:
    """The checks of innermost pairs that agree so far, on inputs of one size."""
    agree = [check for check in checks if not check.inside and check.alone <= check.tolerance]
    return [check for check in agree if not any(map(math.isnan, check.arriving))]
