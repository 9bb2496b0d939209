"""Why gradients differ although outputs agree: a gradient stopped or scaled somewhere, a rule of one's own."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_ddpm.doctor.causes import gradient_rules
from jax_ddpm.doctor.causes.hypothesis import head, number, rounded
from jax_ddpm.doctor.gradient_rows import INPUT, GradientRow
from jax_ddpm.doctor.records import Cause, Pair

STOP = "jax.lax.stop_gradient"
REMAINS = 1e-3  # of the difference, at most, under a hypothesis that explains it


class Explanation:
    """The cause for one pair of modules whose gradients differ.

    Args:
        rows: of each input, parameter and output of a module inside.
        variants: a `torch_gradients.TorchGradients` of their module.
    """

    def __init__(self, pair: Pair, rows: Sequence[GradientRow], variants: Any, tolerance: float):
        self.pair, self.rows, self.variants, self.tolerance = pair, rows, variants, tolerance
        self.wrong = [row for row in rows if row.error > tolerance and row.number < 0]
        """Of inputs and parameters."""
        outputs = [row for row in rows if row.error > tolerance and row.number >= 0]
        self.behind = max(outputs, key=lambda row: row.number, default=None)
        """The last output whose gradient differs: that of all outputs after it is right."""

    def cause(self, kind: str, says: str, mend: str, residual: float = 0.0) -> Cause:
        return Cause(kind, f"{head(self.pair)}: {says}. {mend}", mend, residual)

    def find(self) -> Cause | None:
        return (
            self.not_finite()
            or self.one_sided()
            or self.stopped_by_theirs()
            or self.scaled()
            or (self.of_leaf() if self.pair.theirs.is_leaf else self.of_paths())
            or self.stopped(self.wrong)
            or self.between()
        )

    def not_finite(self) -> Cause | None:
        rows = [row for row in self.wrong if not np.isfinite(row.our_gradient).all()]
        if not rows:
            return None
        mend = (
            "jax.grad goes through both branches of jnp.where: change the argument of the unused branch, too. "
            "jnp.sqrt and jnp.linalg.norm have no finite derivative at 0."
        )
        return self.cause("gradient_not_finite", f"the gradient of {listed(rows)} in ours is not finite", mend)

    def one_sided(self) -> Cause | None:
        """A parameter in one network only, or twice in ours."""
        untied = next((row for row in self.wrong if row.remark == "untied"), None)
        if untied is not None:
            says = f"theirs uses {untied.theirs} at several places, and ours has its values twice, in {untied.ours}"
            mend = "Use one nnx.Param at both places: each now gets a part of the gradient only."
            return self.cause("untied", says, mend)
        frozen = [row for row in self.wrong if row.remark == "frozen"]
        if frozen and len(frozen) == len(self.wrong):
            says = f"{listed(frozen)} of theirs is trained, but {', '.join(r.ours for r in frozen)} is no parameter"
            return self.cause("frozen_parameter", says, "Write nnx.Param(...), which nnx.grad and optimisers look for.")
        buffers = [row for row in self.wrong if row.remark == "buffer"]
        if buffers and len(buffers) == len(self.wrong):
            says = f"ours trains {', '.join(row.ours for row in buffers)}, which is a buffer in theirs"
            return self.cause("trained_buffer", says, "Make it another nnx.Variable, or a constant, not an nnx.Param.")
        return None

    def stopped_by_theirs(self) -> Cause | None:
        ours_zero = [row for row in self.wrong if not row.our_gradient.any()]
        theirs_zero = [row for row in self.wrong if not row.their_gradient.any()]
        if not theirs_zero or ours_zero:
            return None
        says = f"theirs stops the gradient of {listed(theirs_zero)} (detach), ours does not"
        return self.cause("detach_missing", says, f"Write {STOP}(...) where theirs detaches.")

    def stopped(self, rows: Sequence[GradientRow]) -> Cause | None:
        zero = [row for row in rows if not row.our_gradient.any()]
        if not zero:
            return None
        says = f"ours stops the gradient of {listed(zero)}, theirs does not"
        return self.cause("stop_gradient", says, f"Remove {STOP} there.")

    def scaled(self) -> Cause | None:
        """All gradients that differ have one factor: those of everything, or of some parameters only."""
        factor = factor_of(self.wrong, self.tolerance)
        everything = all(row.error > self.tolerance or not row.their_gradient.any() for row in self.rows)
        if factor is None or not (everything or self.pair.theirs.is_leaf or all(r.is_parameter for r in self.wrong)):
            return None
        if everything:
            which, mend = "all gradients", "Compare what multiplies the gradient."
        else:
            which = f"the gradient of {listed(self.wrong)}"
            mend = "Compare how often it is used, and what multiplies its gradient."
        says = f"ours has {which} with {times(factor)}"
        return self.cause("gradient_scaled", says, mend)

    def of_leaf(self) -> Cause | None:
        """For an innermost module."""
        if all(not row.our_gradient.any() for row in self.wrong):
            only_inputs = all(row.theirs.startswith(INPUT) for row in self.wrong)
            return self.stopped(self.wrong) if not only_inputs or self.pair.theirs.parameters else None
        found = gradient_rules.of_norm(self.pair, self.wrong, self.variants.weights)
        return None if found is None else self.cause("norm_gradient", *found)

    def of_paths(self) -> Cause | None:
        """A factor, 0 where the gradient is stopped, for what passes one of the modules inside, or passes it by."""
        if not self.behind and all(row.is_parameter and not row.our_gradient.any() for row in self.wrong):
            return self.stopped(self.wrong)
        usual = self.stacked(self.variants.usual())
        ours = np.concatenate([row.our_gradient.ravel() for row in self.rows])
        size = np.abs(usual).max()
        enough = min(10 * self.tolerance * size, REMAINS * np.abs(ours - usual).max())
        for where, changed in self.variants.stopped():
            stopped = self.stacked(changed)
            for share, around in ((usual - stopped, False), (stopped, True)):
                total = float(share @ share)
                change = float((ours - usual) @ share) / total if total else 0.0
                residual = np.abs(ours - usual - change * share).max()
                if change and residual <= enough:
                    return self.of_path(where, around, 1 + change, residual / size)
        return None

    def of_path(self, where: str, around: bool, factor: float, residual: float) -> Cause:
        stops = abs(factor) < 1e-6
        if stops and around:
            says = f"ours lets the gradient pass only where theirs would be stopped {where}: other paths are stopped"
            return self.cause("stop_gradient", says, f"Remove {STOP} from the paths around.", residual)
        if stops:
            says = f"ours stops the gradient {where}, theirs does not"
            return self.cause("stop_gradient", says, f"Remove {STOP} there.", residual)
        place = f"of all paths but the one {where}" if around else where
        says = f"ours gives the gradient {place} {times(factor)}"
        return self.cause("gradient_scaled", says, "Compare what multiplies the gradient there.", residual)

    def stacked(self, gradients: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([gradients[row.theirs].ravel() for row in self.rows])

    def between(self) -> Cause | None:
        """What is computed without a module has another derivative."""
        outputs = [row for row in self.rows if row.number >= 0]
        at = self.behind or next((row for row in self.wrong if not row.is_parameter), self.wrong[0])
        if at.their_gradient.shape != at.our_gradient.shape:
            return None
        inputs = [row for row in self.rows if row.theirs.startswith(INPUT) and row.value is not None]
        others = [row for row in outputs + inputs if row is not at and np.shape(row.value) == at.their_gradient.shape]
        where = f"behind {at.theirs}" if at.number >= 0 else f"of {at.theirs}"
        found = gradient_rules.clipped(at, others)
        if found is not None:
            return self.cause("gradient_clipped", *found)
        found = gradient_rules.stopped_channels(at)
        if found is not None:
            return self.cause("stop_gradient", f"ours stops the gradient {where} in {found}", f"Remove {STOP} there.")
        says, mend = gradient_rules.other_rule(at, where)
        return self.cause("gradient_rule", says, mend)


def cause_of(pair: Pair, rows: Sequence[GradientRow], variants: Any, tolerance: float) -> Cause | None:
    """The cause for one pair of modules whose gradients differ. Arguments are those of `Explanation`."""
    with np.errstate(all="ignore"):
        return Explanation(pair, rows, variants, tolerance).find()


def factor_of(rows: Sequence[GradientRow], tolerance: float) -> float | None:
    """The factor between all gradients, if there is one."""
    total = sum(float(np.sum(row.their_gradient**2)) for row in rows)
    if not total or any(row.their_gradient.shape != row.our_gradient.shape for row in rows):
        return None
    factor = sum(float(np.sum(row.their_gradient * row.our_gradient)) for row in rows) / total
    size = max(np.abs(row.our_gradient).max() for row in rows)
    near = all(np.abs(factor * row.their_gradient - row.our_gradient).max() <= 10 * tolerance * size for row in rows)
    return factor if near and factor else None


def times(factor: float) -> str:
    short = rounded(factor, lambda value: abs(value - factor) <= 1e-6 * abs(factor))
    if short == -1:
        return "the opposite sign of theirs"
    return f"{number(factor if short is None else short)} times the size of theirs"


def listed(rows: Sequence[GradientRow]) -> str:
    names = [row.theirs for row in rows]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
