"""Gradients of both networks side by side. All arrays are in their layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jax_ddpm.doctor.records import Call

INPUT, OUTPUT = "input ", "the output of "


@dataclass
class GradientRow:
    """The gradient of a parameter, of an input, or of the output of a module inside."""

    theirs: str
    """The parameter's name, "input 0", or "the output of block.conv1"."""
    ours: str
    their_gradient: np.ndarray
    our_gradient: np.ndarray
    error: float
    """Largest difference divided by the largest value of theirs."""
    value: np.ndarray | None = None
    """Of inputs and outputs: what the gradient is of."""
    number: int = -1
    """Of outputs: the number of their call."""
    remark: str = ""
    """ "frozen": no nnx.Param in ours. "buffer": no parameter in theirs. "untied": ours has its values twice."""

    @property
    def is_parameter(self) -> bool:
        return not self.theirs.startswith((INPUT, OUTPUT))


def error_of(theirs: np.ndarray, ours: np.ndarray, floor: float) -> float:
    if theirs.shape != ours.shape or not np.isfinite(ours).all():
        return np.inf
    return float(np.abs(theirs - ours).max(initial=0) / max(np.abs(theirs).max(initial=0), floor, 1e-300))


def output_name(path: str, count: int) -> str:
    """The name of the output of a module's call number `count`, from 0, inside the module that is differentiated."""
    return f"{OUTPUT}{path}" + (f", call {count + 1}" if count else "")


def output_names(around: Call, calls: Sequence[Call]) -> dict[int, str]:
    """Names of the outputs of all calls inside a call, by the calls' numbers."""
    inside, counts, found = {around.number}, {}, {}
    for call in calls:
        if call.parent in inside:
            inside.add(call.number)
            count = counts.get(call.path, 0)
            counts[call.path] = count + 1
            found[call.number] = output_name(call.path, count)
    return found
