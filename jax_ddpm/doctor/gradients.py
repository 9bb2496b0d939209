"""Gradients of both networks for the same loss: of every parameter, and where they first differ.

The loss is the sum of the first output times fixed random numbers, in float64. Where gradients differ although outputs
agree, each pair of modules is differentiated alone, on their input, from the whole network down to the innermost pair
that differs. Inside that one, the gradients of the outputs of its modules say between which of them the mistake is.
"""

from collections.abc import Sequence

import numpy as np

from jax_ddpm.doctor.causes.gradient import cause_of
from jax_ddpm.doctor.flax_gradients import our_gradients
from jax_ddpm.doctor.flax_side import FlaxNetwork
from jax_ddpm.doctor.gradient_rows import INPUT, GradientRow, error_of, output_names
from jax_ddpm.doctor.parameters import ParameterPairing
from jax_ddpm.doctor.records import Call, Finding, Pair
from jax_ddpm.doctor.torch_gradients import TorchGradients, their_gradients
from jax_ddpm.doctor.torch_side import TorchNetwork
from jax_ddpm.doctor.unnamed_arrays import is_constant, same_content

TOLERANCE = 1e-7
"""Relative difference of two gradients in float64 that rounding explains."""
FLOAT32_TOLERANCE = 1e-3
"""The same where a layer computes in float32."""
SMALLEST = 1e-6
"""Gradients are compared with at least this share of the largest of all."""


class GradientComparison:
    """Gradients of pairs of modules.

    Args:
        pairs: those of the forced run, the whole networks' first.
    """

    def __init__(
        self,
        their: TorchNetwork,
        our: FlaxNetwork,
        pairing: ParameterPairing,
        pairs: Sequence[Pair],
        their_calls: Sequence[Call],
        our_calls: Sequence[Call],
    ):
        self.their, self.our, self.pairing, self.pairs = their, our, pairing, pairs
        self.their_calls, self.our_calls = their_calls, our_calls

    def rows(self, pair: Pair, inside: Sequence[Pair] = ()) -> list[GradientRow]:
        """Of one module's inputs, of all parameters inside, and of the outputs of the pairs `inside`."""
        weights = loss_weights(pair)
        their_names, our_names = (
            output_names(around, calls) if inside else {}
            for around, calls in ((pair.theirs, self.their_calls), (pair.ours, self.our_calls))
        )
        inside = [one for one in inside if one.theirs.number in their_names and one.ours.number in our_names]
        shapes = {our_names[one.ours.number]: one.ours.outputs[0].shape for one in inside}
        wanted = {their_names[one.theirs.number]: one.theirs.path for one in inside}
        theirs = their_gradients(self.their, pair.theirs, weights, wanted)
        ours = our_gradients(self.our, pair.ours, pair.output_axes[0].to_ours(weights), shapes)
        rows = self.of_inputs(pair, theirs, ours) + self.of_parameters(pair, theirs, ours)
        for one in inside:
            name, other = their_names[one.theirs.number], our_names[one.ours.number]
            if name in theirs:
                pair_of_arrays = theirs[name], one.output_axes[0].to_theirs(ours[other])
                value, number = one.theirs.outputs[0], one.theirs.number
                rows.append(GradientRow(name, other, *pair_of_arrays, 0.0, value, number))
        largest = max((np.abs(row.their_gradient).max(initial=0) for row in rows), default=0.0)
        for row in rows:
            row.error = error_of(row.their_gradient, row.our_gradient, SMALLEST * largest)
        return rows

    def of_inputs(self, pair: Pair, theirs: dict, ours: dict) -> list[GradientRow]:
        rows = []
        for number, (value, index, axes) in enumerate(
            zip(pair.theirs.arrays, pair.order, pair.input_axes, strict=False)
        ):
            name, other = f"{INPUT}{number}", f"{INPUT}{index}"
            converted = axes.to_theirs(ours[other]) if axes is not None and other in ours else None
            if name in theirs and converted is not None and converted.shape == value.shape:
                rows.append(GradientRow(name, other, theirs[name], converted, 0.0, value))
        return rows

    def of_parameters(self, pair: Pair, theirs: dict, ours: dict) -> list[GradientRow]:
        """Also of arrays that are a parameter on one side only: their gradient is 0 on the other one."""
        rows, prefix = [], f"{pair.theirs.path}." if pair.theirs.path else ""
        for one in self.pairing.pairs:
            if not one.theirs.startswith(prefix) or one.theirs in self.their.frozen:
                continue
            name, is_ours = ", ".join(one.ours), all(path in ours for path in one.ours)
            converted = one.layout.to_torch(*(ours[path] for path in one.ours)) if is_ours else None
            if one.theirs in theirs and is_ours:
                rows.append(GradientRow(one.theirs, name, theirs[one.theirs], converted, 0.0))
            elif one.theirs in theirs:
                zeros = np.zeros_like(theirs[one.theirs])
                rows.append(GradientRow(one.theirs, name, theirs[one.theirs], zeros, 0.0, remark="frozen"))
            elif is_ours:
                zeros = np.zeros_like(converted)
                rows.append(GradientRow(one.theirs, name, zeros, converted, 0.0, remark="buffer"))
        return rows

    def mark_untied(self, rows: Sequence[GradientRow], tolerance: float) -> None:
        """Give rows of parameters that differ, and that ours has twice, the remark "untied" and both names."""
        theirs, ours = self.their.parameters(), self.our.parameters()
        for row in rows:
            if not row.is_parameter or row.error <= tolerance or is_constant(theirs[row.theirs]):
                continue
            value = theirs[row.theirs]
            twins = [path for path in self.pairing.unpaired_ours if ours[path].size == value.size]
            twins = [path for path in twins if same_content(value, ours[path])]
            if twins:
                row.remark, row.ours = "untied", " and ".join([row.ours, *twins])

    def children(self, pair: Pair) -> list[Pair]:
        """The pairs inside a pair with no other pair between, whose output is an array."""
        paired = {other.theirs.number for other in self.pairs}

        def around(call: Call) -> int | None:
            parent = call.parent
            while parent is not None and parent not in paired:
                parent = self.their_calls[parent].parent
            return parent

        inside = [other for other in self.pairs if other is not pair and around(other.theirs) == pair.theirs.number]
        return [other for other in inside if other.output_axes and isinstance(other.theirs.output, np.ndarray)]

    def innermost(self, tolerance: float) -> tuple[Pair, list[GradientRow], str] | None:
        """The innermost pair whose gradients differ, its rows, and the first parameter of all that differs."""
        inside = self.pairs[0]
        rows = self.rows(inside)
        if all(row.error <= tolerance for row in rows):
            return None
        named = next((row.theirs for row in rows if row.is_parameter and row.error > tolerance), "")
        while True:
            for pair in self.children(inside):
                alone = self.rows(pair)
                if any(row.error > tolerance for row in alone):
                    inside, rows = pair, alone
                    break
            else:
                break
        children = self.children(inside)
        return inside, (self.rows(inside, children) if children else rows), named


def loss_weights(pair: Pair) -> np.ndarray:
    """The random numbers by which the first output of theirs is multiplied."""
    return np.random.default_rng(0).standard_normal(pair.theirs.outputs[0].shape)


def gradient_findings(
    their: TorchNetwork,
    our: FlaxNetwork,
    pairing: ParameterPairing,
    pairs: Sequence[Pair],
    their_calls: Sequence[Call],
    our_calls: Sequence[Call],
    tolerance: float = TOLERANCE,
) -> list[Finding]:
    """The innermost pair whose gradients differ, with its cause; an empty list if all gradients agree."""
    comparison = GradientComparison(their, our, pairing, pairs, their_calls, our_calls)
    found = comparison.innermost(tolerance)
    if found is None:
        return []
    inside, rows, named = found
    comparison.mark_untied(rows, tolerance)
    worst = max((row for row in rows if row.number < 0), key=lambda row: row.error)
    finding = Finding(
        "gradient",
        inside,
        worst.error,
        tuple(inside.theirs.arrays),
        tuple(inside.theirs.arrays),
        worst.their_gradient,
        worst.our_gradient,
        lambda *arrays: their.run(inside.theirs, *arrays),
        lambda *arrays: our.run(inside.ours, *arrays),
        tolerance=tolerance,
        parameter=named or worst.theirs,
    )
    outputs = {row.theirs: their_calls[row.number].path for row in rows if row.number >= 0}
    variants = TorchGradients(their, inside.theirs, loss_weights(inside), outputs)
    finding.cause = cause_of(inside, rows, variants, tolerance)
    return [finding]
