"""Why gradients differ although outputs agree: a gradient stopped somewhere, a factor, a rule of one's own."""

from typing import Any

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import head, number
from jax_ddpm.doctor.causes.pattern import pattern
from jax_ddpm.doctor.records import Cause, Pair

STOP = "jax.lax.stop_gradient"
REMAINS = 1e-3  # of the difference, at most, under a hypothesis that explains it


def cause_of(pair: Pair, rows: list, variants: Any, tolerance: float) -> Cause | None:
    """The cause for one pair of modules whose gradients differ.

    Args:
        rows: a `gradients.GradientRow` for each input and parameter.
        variants: a `torch_gradients.TorchGradients` of their module.
    """
    wrong = [row for row in rows if row.error > tolerance]
    name = head(pair)
    size = max(np.abs(row.their_gradient).max(initial=0) for row in rows)

    def cause(kind: str, says: str, mend: str, residual: float = 0.0) -> Cause:
        return Cause(kind, f"{name}: {says}. {mend}", mend, residual)

    ours_zero = [row.theirs for row in wrong if not row.our_gradient.any()]
    theirs_zero = [row.theirs for row in wrong if not row.their_gradient.any()]
    if theirs_zero and not ours_zero:
        says = f"theirs stops the gradient of {listed(theirs_zero)} (detach), ours does not"
        return cause("detach_missing", says, f"Write {STOP}(...) where theirs detaches.")
    scaled = factor_of(wrong, tolerance)
    if scaled is not None and len(wrong) == len(rows):
        says = f"all gradients of ours are {number(scaled)} times theirs"
        return cause("gradient_scaled", says, "Compare what multiplies the gradient.")
    if pair.theirs.is_leaf or len(ours_zero) == len(wrong):
        if len(ours_zero) == len(wrong) and not (wrong and all(row.theirs.startswith("input") for row in wrong)):
            says = f"ours stops the gradient of {listed(ours_zero)}, theirs does not"
            return cause("stop_gradient", says, f"Remove {STOP} there.")
        if pair.theirs.is_leaf:
            return of_leaf(pair, wrong, cause)
    usual = variants.usual()
    enough = min(10 * tolerance, REMAINS * residual_of(rows, usual, size))
    for where, stopped in variants.stopped():
        kept = residual_of(rows, stopped, size)
        if kept < enough:
            says = f"ours stops the gradient {where}, theirs does not"
            return cause("stop_gradient", says, f"Remove {STOP} there.", kept)
        only = residual_of(rows, stopped, size, usual)
        if only < enough:
            says = f"ours lets the gradient pass only where theirs would be stopped {where}: other paths are stopped"
            return cause("stop_gradient", says, f"Remove {STOP} from the paths around.", only)
    if ours_zero:
        says = f"ours stops the gradient of {listed(ours_zero)}, theirs does not"
        return cause("stop_gradient", says, f"Remove {STOP} there.")
    return None


def of_leaf(pair: Pair, wrong: list, cause) -> Cause:
    """For an innermost module: its derivative, where outputs and inputs have one shape."""
    row = wrong[0]
    says = f"the gradient of {row.theirs} differs by {number(float(f'{row.error:.2g}'))} although the outputs agree"
    if not row.our_gradient.any():
        return cause("stop_gradient", f"ours stops the gradient of {row.theirs}, theirs does not", f"Remove {STOP}.")
    text = pattern(row.their_gradient, row.our_gradient).rstrip(".")
    mend = "Compare the rule of its derivative (jax.custom_vjp or jax.custom_jvp in ours, autograd.Function in theirs)."
    return cause("gradient_rule", f"{says}. {text}", mend)


def factor_of(rows: list, tolerance: float) -> float | None:
    """The factor between all gradients, if there is one."""
    total = sum(float(np.sum(row.their_gradient**2)) for row in rows)
    if not total or any(row.their_gradient.shape != row.our_gradient.shape for row in rows):
        return None
    factor = sum(float(np.sum(row.their_gradient * row.our_gradient)) for row in rows) / total
    size = max(np.abs(row.our_gradient).max() for row in rows)
    near = all(np.abs(factor * row.their_gradient - row.our_gradient).max() <= 10 * tolerance * size for row in rows)
    return factor if near and factor else None


def residual_of(rows: list, changed: Any, size: float, total: Any = None) -> float:
    """The largest difference between ours and their changed gradients, or the total minus these, relative to `size`."""
    worst = 0.0
    for row in rows:
        theirs = changed.row(row.theirs)
        theirs = theirs if total is None else total.row(row.theirs) - theirs
        worst = max(worst, float(np.abs(theirs - row.our_gradient).max(initial=0)))
    return worst / size if size else worst


def listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
