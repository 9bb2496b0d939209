"""Ours is computed in a smaller dtype, or multiplies in TF32 or bfloat16."""

from collections.abc import Iterator
from dataclasses import replace

import ml_dtypes
import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis, is_rounded_to
from jax_ddpm.doctor.records import Finding, relative_error

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "TF32": 2.0**-11}
"""Largest relative error of one rounding."""


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    """All numbers of ours are in a smaller dtype, and the difference is of the size of its rounding."""
    theirs, ours = finding.values
    error = relative_error(ours, theirs)
    if not np.isfinite(error) or ours.dtype.kind != "f" or is_one_of_few(ours):
        return
    for dtype, kind in DTYPES.items():
        if is_rounded_to(ours, kind) and error <= 64 * STEP[dtype]:
            yield Hypothesis(
                "dtype",
                f"ours computes in {dtype}: all its numbers are {dtype}, and they differ from theirs by rounding only",
                f"Remove dtype={dtype} or the cast to it.",
                lambda *_: ours,
            )
    if finding.place != "layer" or not 1e-7 < error < 0.05:
        return
    for dtype in ("bfloat16", "TF32"):
        operation = operation_with_rounded_weights(finding, dtype)
        if operation is not None:
            yield Hypothesis(
                "matmul_precision",
                f"ours multiplies in {dtype}: rounding inputs and weights to {dtype} gives our numbers",
                'Set jax.config.update("jax_default_matmul_precision", "highest"), or precision="highest".',
                lambda x, dtype=dtype, operation=operation: operation(round_to(x, dtype)),
                remainder=0.03,
                largest=1e-4,
            )


def is_one_of_few(array: np.ndarray) -> bool:
    """Whether an array holds so few different numbers that their digits say nothing."""
    return len(np.unique(array)) < 8


def round_to(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "TF32":
        return array.astype(DTYPES[dtype]).astype(np.float64)
    bits = array.astype(np.float32).view(np.uint32)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def operation_with_rounded_weights(finding: Finding, dtype: str):
    """Their convolution or linear layer with rounded weights, or None for other layers."""
    from jax_ddpm.doctor.causes import convolution, linear

    for family in (convolution, linear):
        operation = family.read(finding.pair.theirs)
        if operation is not None:
            return replace(operation, weight=round_to(operation.weight, dtype))
    return None
