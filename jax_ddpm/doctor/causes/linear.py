"""Linear layers: transposed weights, bias, order of features."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis, constructor, kinds
from jax_ddpm.doctor.records import Call, Finding


@dataclass(frozen=True)
class Affine:
    """x W^T + b in PyTorch's layout."""

    weight: np.ndarray
    bias: np.ndarray | None
    bias_factor: int = 1

    def __call__(self, x: np.ndarray, *_: Any) -> np.ndarray:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias_factor * self.bias


def read(call: Call) -> Affine | None:
    """Their linear layer, or None if the call is none."""
    weight = call.parameters.get("weight")
    if not kinds(call) & {"Linear", "NonDynamicallyQuantizableLinear"} or weight is None or weight.ndim != 2:
        return None
    return Affine(weight, call.parameters.get("bias"))


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    theirs = read(finding.pair.theirs)
    if theirs is None:
        return
    layer = constructor(finding.pair.ours)
    if theirs.bias is not None and theirs.bias.any():
        yield Hypothesis(
            "bias_missing",
            "ours adds no bias, theirs does",
            f"Write {layer}(..., use_bias=True) and load the bias.",
            replace(theirs, bias=None),
        )
        yield Hypothesis(
            "bias_doubled", "ours adds the bias twice", "Add the bias once.", replace(theirs, bias_factor=2)
        )
    if theirs.weight.shape[0] == theirs.weight.shape[1]:
        transposed = replace(theirs, weight=theirs.weight.T)
        mend = "Convert the weight by kernel = weight.T: Flax computes x @ kernel, PyTorch x @ weight.T."
        yield Hypothesis("weight_transposed", "the weight is transposed in ours", mend, transposed)
        if theirs.bias is not None:
            says = "the weight is transposed in ours, and the bias is missing"
            yield Hypothesis("weight_transposed", says, mend, replace(transposed, bias=None))
