"""Try all hypotheses about a finding; the first that is proven is its cause."""

from collections.abc import Callable, Iterator

import numpy as np

from jax_ddpm.doctor.causes import (
    activation,
    convolution,
    dropout,
    embedding,
    glue,
    inputs,
    linear,
    multihead,
    normalization,
    resampling,
    rounding,
    transposed,
    weights,
)
from jax_ddpm.doctor.causes.hypothesis import UNFIT, Hypothesis, head, is_proven, place_between
from jax_ddpm.doctor.causes.pattern import pattern
from jax_ddpm.doctor.records import Cause, Finding, relative_error

OF_LAYERS: tuple[Callable[[Finding], Iterator[Hypothesis]], ...] = (
    rounding.hypotheses,
    dropout.hypotheses,
    convolution.hypotheses,
    transposed.hypotheses,
    linear.hypotheses,
    normalization.hypotheses,
    activation.hypotheses,
    embedding.of_table,
    embedding.of_module,
    resampling.hypotheses,
    multihead.hypotheses,
    weights.hypotheses,
    glue.around,
    inputs.hypotheses,
)
OF_GLUE = (rounding.hypotheses, dropout.hypotheses, glue.hypotheses)


def explain(finding: Finding) -> Cause | None:
    """The cause of a difference between two calls, or None if no hypothesis gives our numbers."""
    theirs, ours = finding.values
    if finding.place not in ("layer", "glue") or theirs is None or ours is None:
        return None
    if relative_error(ours, theirs) <= finding.tolerance:
        return None
    for family in OF_LAYERS if finding.place == "layer" else OF_GLUE:
        for hypothesis in guarded(family, finding):
            cause = proven(finding, hypothesis)
            if cause is not None:
                return cause
    return None


def describe(finding: Finding) -> str:
    """Where and how the two arrays differ, for a finding without a cause."""
    return pattern(*finding.values)


def guarded(family: Callable, finding: Finding) -> Iterator[Hypothesis]:
    """The hypotheses of a family up to one that cannot be made from these arrays."""
    with np.errstate(all="ignore"):
        try:
            yield from family(finding)
        except UNFIT:
            return


def proven(finding: Finding, hypothesis: Hypothesis) -> Cause | None:
    """The cause, if the hypothesis gives our numbers."""
    ours = finding.values[1]
    preview = getattr(hypothesis.compute, "preview", None)
    try:
        if preview is not None:
            part = preview(*finding.their_inputs)
            if part.shape[2:] != ours.shape[2:] or relative_error(part, ours[:1, : part.shape[1]]) > 1e-4:
                return None
        guess = hypothesis.compute(*finding.their_inputs)
    except UNFIT:
        return None
    if not is_proven(finding, hypothesis, guess):
        return None
    subject = place_between(finding) if finding.place == "glue" else head(finding.pair)
    sentence = f"{subject}: {hypothesis.says}."
    residual = relative_error(guess, finding.values[1])
    return Cause(hypothesis.name, f"{sentence} {hypothesis.mend}", hypothesis.mend, residual)
