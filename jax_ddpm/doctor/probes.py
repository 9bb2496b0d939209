"""Inputs that show what usual ones hide: small variance shows a wrong epsilon, a large mean a one-pass variance."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from jax_ddpm.doctor.flax_side import FlaxNetwork
from jax_ddpm.doctor.forced import Check, rounding, run_ours
from jax_ddpm.doctor.records import Finding, relative_error
from jax_ddpm.doctor.torch_side import TorchNetwork

SMALL = 1e-2
LARGE_MEAN = 1e6
"""In standard deviations. In float64 a variance in two passes keeps ten digits there, in one pass three."""
LARGE_MEAN_TOLERANCE = 1e-7


def probe(
    check: Check, their: TorchNetwork, our: FlaxNetwork
) -> tuple[str, tuple, np.ndarray, np.ndarray, float] | None:
    """The first probe on which the layers of a pair differ: its name, the inputs, both outputs, the error.

    Inputs and outputs are in their layout.
    """
    inputs = tuple(check.pair.theirs.arrays)
    if not inputs or not np.issubdtype(inputs[0].dtype, np.floating) or not inputs[0].size:
        return None

    def theirs(array: np.ndarray) -> np.ndarray:
        return their.run(check.pair.theirs, array, *inputs[1:])

    def ours(array: np.ndarray) -> np.ndarray:
        return run_ours(our, check.pair, array, *inputs[1:])

    return small_variance(inputs, theirs, ours) or large_mean(inputs, theirs, ours)


def small_variance(inputs, theirs: Callable, ours: Callable):
    x = inputs[0]
    std = x.std() or 1.0
    scaled = x * (SMALL / std)
    a, b = theirs(scaled), ours(scaled)
    error = relative_error(b, a)
    return ("small variance", (scaled, *inputs[1:]), a, b, error) if error > rounding([a, b]) else None


def large_mean(inputs, theirs: Callable, ours: Callable):
    """Only for layers of which a constant added to the input changes nothing. Their output without it is the judge."""
    x = inputs[0]
    std = x.std() or 1.0
    a = theirs(x)
    if relative_error(theirs(x + 10 * std), a) > 1e-9:
        return None
    shifted = x + LARGE_MEAN * std
    b = ours(shifted)
    error = relative_error(b, a)
    tolerance = LARGE_MEAN_TOLERANCE if rounding([a, b]) < 1e-7 else np.inf
    return ("large mean", (shifted, *inputs[1:]), a, b, error) if error > tolerance else None


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
    """The checks of innermost pairs that agree so far."""
    return [check for check in checks if not check.inside and check.alone <= check.tolerance]
