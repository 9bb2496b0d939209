"""A hypothesis about a difference, when it counts as proven, and how sentences name layers and numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jax_ddpm.doctor.records import Call, Finding, Pair, relative_error

PROVEN_BELOW = 1e-6
"""Largest relative difference between a hypothesis and our output."""

UNFIT = (ValueError, RuntimeError, IndexError, ZeroDivisionError)
"""What arrays of shapes that a hypothesis does not expect raise."""


@dataclass
class Hypothesis:
    """What ours may compute in place of theirs."""

    name: str
    """Identifier of the cause."""
    says: str
    """Both values, for example "epsilon is 1e-06 in ours and 1e-05 in theirs"."""
    mend: str
    """The line to change."""
    compute: Callable[..., np.ndarray]
    """The layer's inputs in their layout -> the array that ours should then compute, in their layout. It may have a
    method `preview` that gives the first channels of the first image, to be tried before."""
    remainder: float = 1e-3
    """The share of the difference that may remain."""
    largest: float = PROVEN_BELOW
    """The relative difference that may remain."""


def is_proven(finding: Finding, hypothesis: Hypothesis, guess: np.ndarray) -> bool:
    """Whether `guess` equals our array up to rounding, and explains nearly all of the difference.

    Where all numbers of ours are float32, rounding to float32 may remain.
    """
    theirs, ours = finding.values
    if guess.shape != ours.shape or not np.isfinite(guess).all():
        return False
    residual = relative_error(guess, ours)
    if residual > hypothesis.largest:
        return False
    error = relative_error(ours, theirs)
    return residual <= error * hypothesis.remainder or (
        is_rounded_to(ours, np.float32) and residual < 1e-6 and residual <= error / 10
    )


def is_rounded_to(array: np.ndarray, dtype) -> bool:
    """Whether every number of an array is one of `dtype`, which is smaller than float64."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array, array.astype(dtype).astype(np.float64)))


def head(pair: Pair) -> str:
    """The layer on both sides: "norm (GroupNorm)" or "norm1 (GroupNorm), ours norm (nnx.GroupNorm)"."""
    theirs, ours = pair.theirs, pair.ours
    if theirs.path != ours.path:
        return f"{theirs.name}, ours {ours.name}"
    return (
        theirs.name if theirs.kind == ours.kind else f"{theirs.path or 'the network'} ({theirs.kind}, ours {ours.kind})"
    )


def place_between(finding: Finding) -> str:
    """Of a finding between modules: the code that makes what differs."""
    layer = head(finding.pair)
    if finding.target == "output":
        return f"In the code of {layer}, which makes its output"
    given = finding.values[0]
    earlier = [pair.theirs for pair in finding.before if pair.theirs.path]
    earlier = [call for call in earlier if call.outputs and call.outputs[0].ndim == given.ndim]
    place = f"between {earlier[-1].path} and {layer}" if earlier else f"before {layer}"
    argument = f", for argument {finding.argument}" if len(finding.their_inputs) > 1 else ""
    return f"In the code {place}{argument}"


def kinds(call: Call) -> set[str]:
    """Names of a module's class and its base classes."""
    return {call.kind, *(base.__name__ for base in type(call.module).__mro__)}


def constructor(call: Call) -> str:
    """How our code names the layer's class: "nnx.Conv", "nn.Conv" in Linen, or the class itself."""
    origin = type(call.module).__module__
    prefix = "nnx." if origin.startswith("flax.nnx") else "nn." if origin.startswith("flax.linen") else ""
    return prefix + call.kind


def number(value: float) -> str:
    """A number with few digits: 1e-05, 0.2, 1.702."""
    return f"{value:.6g}"


def rounded(value: float, fits: Callable[[float], bool]) -> float | None:
    """The number with the fewest digits near `value` that fits; None if even 12 digits do not."""
    for digits in (1, 2, 3, 4, 5, 6, 8, 10, 12):
        short = float(f"{value:.{digits - 1}e}")
        if fits(short):
            return short
    return None


def pair_of(setting) -> tuple[int, ...]:
    """A setting of PyTorch that is a number or a tuple, as a tuple."""
    return tuple(setting) if isinstance(setting, tuple | list) else (setting,)


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
