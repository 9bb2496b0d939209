"""Dropout is on in ours."""

from collections.abc import Iterator

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis, number
from jax_ddpm.doctor.records import Finding


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    """Some numbers of ours are 0, and all others are those of theirs times one factor."""
    theirs, ours = finding.values
    if theirs.shape != ours.shape:
        return
    dropped = (ours == 0) & (theirs != 0)
    kept = (ours != 0) & (theirs != 0)
    if not dropped.any() or not kept.any() or ((ours != 0) & (theirs == 0)).any():
        return
    factor = np.median(ours[kept] / theirs[kept])
    share = dropped.sum() / (dropped.sum() + kept.sum())
    if factor < 1.001 or abs(share - (1 - 1 / factor)) > 0.25 + 2 / np.sqrt(share * theirs.size + 1):
        return
    rate = float(f"{1 - 1 / factor:.6g}")
    yield Hypothesis(
        "dropout",
        f"dropout is on in ours: {share:.0%} of the numbers are 0, the others are multiplied by {number(factor)}, "
        f"as dropout with rate {number(rate)} does",
        "Call model.eval(), or pass deterministic=True to the dropout.",
        lambda *_: np.where(dropped, 0, theirs * factor),
    )
