"""Ours computes what theirs does, with other parameters: reshaped, in another order, or of other values."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import permutations

import numpy as np

from jax_ddpm.doctor.causes import convolution, linear, normalization, transposed
from jax_ddpm.doctor.causes.hypothesis import Hypothesis, number
from jax_ddpm.doctor.records import Finding

FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the square root of theirs": lambda v: np.sqrt(np.abs(v)),
    "the square of theirs": np.square,
    "the reciprocal of theirs": lambda v: 1 / v,
    "theirs with the opposite sign": lambda v: -v,
    "theirs plus 1": lambda v: v + 1,
    "theirs minus 1": lambda v: v - 1,
    "the exponential of theirs": np.exp,
    "the logarithm of theirs": lambda v: np.log(np.abs(v)),
    "all 0": np.zeros_like,
    "all 1": np.ones_like,
}
OUR_NAMES = {
    "weight": ("kernel", "scale", "embedding", "weight"),
    "bias": ("bias",),
    "running_mean": ("mean",),
    "running_var": ("var",),
}


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    """One parameter of ours differs, and explains all; else all parameters of ours do."""
    theirs, ours = finding.pair.theirs.parameters, finding.pair.ours.parameters
    for name, theirs_array in theirs.items():
        for array in candidates(name, theirs_array, ours):
            if not np.allclose(array, theirs_array, rtol=1e-5, atol=1e-7):
                cause, says = relation(name, theirs_array, array)
                yield Hypothesis(
                    cause,
                    f"{name} of ours {says}",
                    f"Load {name} of theirs as it is, with its axes transposed for ours.",
                    with_parameter(finding, name, array),
                    largest=1e-5,
                )


def candidates(name: str, theirs: np.ndarray, ours: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Our array of that parameter in each layout that fits the shape of theirs, the usual ones first."""
    for our_name in OUR_NAMES.get(name, ()):
        array = ours.get(our_name)
        if array is None or array.size != theirs.size or array.dtype.kind != "f":
            continue
        n = array.ndim
        usual = [(n - 1, n - 2, *range(n - 2)), (n - 2, n - 1, *range(n - 2))] if n > 1 else []
        for order in dict.fromkeys([*usual, *permutations(range(n))]):
            moved = array.transpose(order)
            if moved.shape == theirs.shape:
                yield moved
                if n > 2:
                    yield np.flip(moved, tuple(range(2, n)))


def relation(name: str, theirs: np.ndarray, ours: np.ndarray) -> tuple[str, str]:
    """(identifier, what ours is, in words)."""

    def equal(a: np.ndarray) -> bool:
        return a.shape == ours.shape and np.allclose(a, ours, rtol=1e-5, atol=1e-6)

    with np.errstate(all="ignore"):
        for says, function in FUNCTIONS.items():
            if equal(function(theirs)):
                return "variance" if name == "running_var" else "parameter_values", f"is {says}"
        factor = float(np.sum(theirs * ours) / np.sum(theirs * theirs))
    if equal(factor * theirs):
        return "parameter_values", f"is theirs times {number(factor)}"
    for order in permutations(range(theirs.ndim)):
        for back in permutations(range(theirs.ndim)):
            shape = [ours.shape[axis] for axis in back]
            if equal(theirs.transpose(order).reshape(shape).transpose(np.argsort(back))):
                return "reshaped", "is reshaped where its axes should be transposed"
    for axis in range(theirs.ndim):
        rows = [np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for v in (theirs, ours)]
        if rows[0].shape[0] > 4096:
            continue
        order = [int(np.argmin(np.abs(rows[0] - row).max(1))) for row in rows[1]]
        if sorted(order) == list(range(len(order))) and equal(np.take(theirs, order, axis)):
            shown = ", ".join(map(str, order[:12])) + (", ..." if len(order) > 12 else "")
            side = ("output", "input")[axis] if theirs.ndim > 1 and axis < 2 else "its"
            return "channels_permuted", f"has the {side} channels of theirs in another order: {shown}"
    return "parameter_values", f"has other values (largest difference {number(float(np.abs(theirs - ours).max()))})"


def with_parameter(finding: Finding, name: str, array: np.ndarray) -> Callable[..., np.ndarray]:
    """Their layer with another array for one parameter."""
    call = finding.pair.theirs
    changed = replace(call, parameters={**call.parameters, name: array})

    def compute(x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        for operation in (
            convolution.read(changed),
            transposed.read(changed, finding.their_output.shape[2:]),
            linear.read(changed),
        ):
            if operation is not None:
                return operation(x)
        if "Embedding" in call.kind and name == "weight":
            return array[np.asarray(x).astype(np.int64)]
        layer = normalization.Layer(changed, x)
        return layer.apply(normalization.declared(changed, layer))

    return compute
