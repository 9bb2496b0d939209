"""Derivatives that a network has in place of the right one: of a norm, of a clipped array, of some channels only."""

from collections.abc import Sequence

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import kinds, number, rounded
from jax_ddpm.doctor.causes.normalization import Layer, declared
from jax_ddpm.doctor.causes.pattern import pattern
from jax_ddpm.doctor.gradient_rows import INPUT, GradientRow
from jax_ddpm.doctor.records import Pair

FEW = 1e-6  # relative: what a rule may leave unexplained


def of_norm(pair: Pair, rows: Sequence[GradientRow], weights: np.ndarray) -> tuple[str, str] | None:
    """What is wrong with a norm's gradient of its input: of the mean, of the variance, sums for means.

    The right one is (g - mean(g) - n mean(g n)) / sqrt(variance + epsilon), with the normalised input n and the
    output's gradient times the scale, g. The factors of its three terms are solved for.
    """
    call = pair.theirs
    row = next((row for row in rows if row.theirs.startswith(INPUT)), None)
    if row is None or not any("norm" in name.lower() for name in kinds(call)) or row.value.shape != weights.shape:
        return None
    layer = Layer(call, row.value)
    form = declared(call, layer)
    if form.over[0] == "running":
        return None
    shape, axes = layer.view(form.over)
    centred, variance = layer.statistics(form)
    deviation = np.sqrt(variance + form.epsilon)
    normal, g = centred / deviation, (weights * layer.weight).reshape(shape)
    count = g.size // variance.size
    means = np.broadcast_to(g.mean(axes, keepdims=True), shape), normal * (g * normal).mean(axes, keepdims=True)
    matrix = np.stack([(term / deviation).ravel() for term in (g, *means)], axis=1)
    factors = np.linalg.lstsq(matrix, row.our_gradient.ravel(), rcond=None)[0]
    left = np.abs(matrix @ factors - row.our_gradient.ravel()).max()
    if left > FEW * np.abs(row.our_gradient).max() or not np.isclose(factors[0], 1, atol=FEW):
        return None
    found, names = [], ("the mean", "the variance")
    for name, factor in zip(names, -factors[1:], strict=True):
        if abs(factor) < FEW:
            found.append(f"no gradient passes through {name}")
        elif np.isclose(factor, count, rtol=FEW):
            found.append(f"the gradient through {name} has sums in place of means, {count} times as large")
        elif not np.isclose(factor, 1, atol=FEW):
            found.append(f"the gradient through {name} is {number(float(f'{factor:.4g}'))} times theirs")
    if not found:
        return None
    mend = "The gradient is (g - mean(g) - n mean(g n)) / std, with the normalised input n and g = gradient * scale."
    return f"in ours {' and '.join(found)}", mend


def clipped(at: GradientRow, others: Sequence[GradientRow]) -> tuple[str, str] | None:
    """The gradients differ exactly where a value is outside of limits: one of the two passes nothing there."""
    difference = at.our_gradient - at.their_gradient
    size = max(np.abs(at.our_gradient).max(), np.abs(at.their_gradient).max())
    wrong = np.abs(difference) > FEW * np.abs(difference).max()
    right = ~wrong & (np.abs(at.their_gradient) > 1e-12 * size)
    if not wrong.any() or not right.any():
        return None
    if at.value is None:
        return None
    values = [(row.theirs, row.value) for row in (at, *others)]
    values += [(f"{at.theirs} + {row.theirs}", at.value + row.value) for row in others]
    for name, value in values:
        limits = limits_of(value, wrong, right)
        if limits is None:
            continue
        sides = zip(("below", "above"), limits, strict=True)
        outside = " or ".join(f"{word} {number(limit)}" for word, limit in sides if limit is not None)
        low, high = ("None" if limit is None else number(limit) for limit in limits)
        if np.abs(at.their_gradient[wrong]).max() <= np.abs(at.our_gradient[wrong]).max():
            says = f"where {name} is {outside}, theirs passes no gradient because it clips, and ours passes it"
            return says, f"Write jnp.clip(x, {low}, {high}) without a rule of its own or jax.lax.stop_gradient."
        says = f"where {name} is {outside}, ours passes no gradient because it clips, and theirs passes it"
        return says, f"Write x + jax.lax.stop_gradient(jnp.clip(x, {low}, {high}) - x)."
    return None


def limits_of(value: np.ndarray, wrong: np.ndarray, right: np.ndarray) -> tuple[float | None, float | None] | None:
    """The round numbers below and above which all `wrong` values are, and between which all `right` ones are."""
    smallest, largest = value[right].min(), value[right].max()
    below, above = wrong & (value < smallest), wrong & (value > largest)
    if (wrong & ~below & ~above).any():
        return None

    def between(low: float, high: float) -> float:
        middle = (low + high) / 2
        found = rounded(middle, lambda number: low <= number <= high)
        return middle if found is None else found

    low = between(value[below].max(), smallest) if below.any() else None
    high = between(largest, value[above].min()) if above.any() else None
    return low, high


def stopped_channels(at: GradientRow) -> str | None:
    """The channels, neighbours, in which ours is 0 and theirs is not."""
    axis = 1 if at.our_gradient.ndim == 4 else at.our_gradient.ndim - 1
    if at.our_gradient.ndim < 2:
        return None
    rest = tuple(k for k in range(at.our_gradient.ndim) if k != axis)
    difference = np.abs(at.our_gradient - at.their_gradient).max(rest)
    wrong = difference > FEW * difference.max()
    zero = np.abs(at.our_gradient).max(rest) == 0
    numbers = np.flatnonzero(wrong)
    if wrong.all() or not zero[wrong].all() or len(numbers) != numbers[-1] - numbers[0] + 1:
        return None
    return f"its channels {numbers[0]} to {numbers[-1]} of {len(wrong)}"


def other_rule(at: GradientRow, where: str) -> tuple[str, str]:
    """That what is computed with an array, without a module, has another derivative."""
    error = float(f"{at.error:.2g}")
    text = pattern(at.their_gradient, at.our_gradient).rstrip(".")
    says = f"the gradient {where} differs by {number(error)} although the outputs agree. {text}"
    mend = "Compare the derivative of what is computed with it: jax.custom_vjp, jax.custom_jvp or a stopped gradient."
    return says, mend
