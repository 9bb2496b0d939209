"""Settings that the outputs of one call do not show: BatchNorm's momentum, the rate of a dropout that is off."""

import math
from collections.abc import Iterator

from jax_ddpm.doctor.causes.hypothesis import constructor, head, kinds, number
from jax_ddpm.doctor.records import Cause, Pair


def hidden_causes(pair: Pair) -> Iterator[Cause]:
    """Differences between the settings of two modules that no output of one call shows."""
    theirs, ours = pair.theirs, pair.ours
    layer = constructor(ours)
    if any("BatchNorm" in kind for kind in kinds(theirs)):
        m, n = theirs.settings.get("momentum"), ours.settings.get("momentum")
        if isinstance(m, float) and isinstance(n, float) and not math.isclose(1 - m, n, abs_tol=1e-9):
            mend = f"Write {layer}(..., momentum={number(1 - m)})."
            says = (
                f"{head(pair)}: momentum is {number(n)} in ours, which keeps that share of the old mean and variance; "
                f"{number(m)} in theirs keeps {number(1 - m)}."
            )
            yield Cause("batchnorm_momentum", f"{says} {mend}", mend, math.nan)
    if any("Dropout" in kind for kind in kinds(theirs)):
        p, rate = theirs.settings.get("p"), ours.settings.get("rate")
        if isinstance(p, int | float) and isinstance(rate, int | float) and not math.isclose(p, rate, abs_tol=1e-9):
            mend = f"Write {layer}({number(p)})."
            says = f"{head(pair)}: the rate is {number(rate)} in ours and {number(p)} in theirs."
            yield Cause("dropout_rate", f"{says} {mend}", mend, math.nan)
