"""The forced run: each of our layers gets their input and hands on their output, so that no error is inherited."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jax_ddpm.doctor.flax_side import FlaxNetwork, Watcher
from jax_ddpm.doctor.layouts import CLOSE, LayoutVotes
from jax_ddpm.doctor.records import Axes, Call, Finding, Pair, map_arrays, relative_error
from jax_ddpm.doctor.torch_side import TorchNetwork, with_arrays

TOLERANCE = 1e-8
"""Relative difference of two float64 computations of the same that rounding explains."""
ROUNDINGS = 16
"""Where a layer computes in a narrower dtype: so many roundings of the largest value that it computes."""
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass
class Check:
    """What the forced run saw of one pair."""

    pair: Pair
    arriving: list[float] = field(default_factory=list)
    """Relative error of each of our inputs, made from their outputs by what stands between modules."""
    argument: int = 0
    """The number, among their arrays, of the worst input."""
    our_inputs: tuple[np.ndarray, ...] = ()
    """In their layout."""
    our_output: np.ndarray | None = None
    """In their layout, made from their inputs (of a composite: from their outputs inside)."""
    alone: float = 0.0
    """Relative error of the output. It and `arriving` are NaN where the modules are cut differently, or inherit it."""
    tolerance: float = TOLERANCE
    inside: int = 0
    """Number of pairs inside."""
    inherited: float = 0.0
    """Relative error of the output when nothing is replaced."""
    has_wrong_input: bool = False
    """Of a module around others: whether its input is wrong, so that what is computed inside inherits an error."""


class Forced(Watcher):
    """Compares and replaces at every paired call of ours.

    Modules with others inside may be cut differently: what one network adds inside a module the other may add before
    it. So a module around others whose input or output differs is only suspected, and nothing is replaced there. The
    next layer decides: if the right input reaches it, the suspicion is dropped. Likewise a layer whose input has
    another size, such as an image that is padded before a convolution and not inside: its own output decides.
    """

    def __init__(self, pairs: Sequence[Pair], votes: LayoutVotes, our_calls: Sequence[Call]):
        self.pairs = {(pair.ours.path, pair.ours.occurrence): pair for pair in pairs}
        self.around = {number for pair in pairs for number in enclosing(pair.ours, our_calls)}
        self.votes = votes
        self.checks: list[Check] = []
        """In the order in which the calls end."""
        self.events: list[tuple[str, Check]] = []
        """("input" or "output", check) in order of execution."""
        self.suspected: list[tuple[str, Check]] = []
        self.dropped: list[tuple[str, Check]] = []
        """Events that are no difference by themselves: modules cut differently, and what is inherited."""
        self.open: list[Check] = []

    def enter(self, call: Call) -> tuple[tuple, dict]:
        pair = self.pairs.get((call.path, call.occurrence))
        if pair is None:
            return call.inputs, call.keywords
        check = Check(pair)
        for outer in self.open:
            outer.inside += 1
        self.open.append(check)
        theirs, ours = pair.theirs.arrays, call.arrays
        order = match_arguments(theirs, ours, self.votes)
        pair.order = [index for index, _, _ in order]
        pair.input_axes = [axes for _, axes, _ in order]
        check.arriving = [error for _, _, error in order]
        check.argument = int(np.argmax(check.arriving)) if order else 0
        check.our_inputs = tuple(
            theirs[number] if index is None else axes.to_theirs(ours[index])
            for number, (index, axes, _) in enumerate(order)
        )
        event = "input", check
        self.events.append(event)
        is_wrong = max(check.arriving, default=0.0) >= CLOSE
        other_size = any(i is not None and ours[i].size != a.size for a, (i, _, _) in zip(theirs, order, strict=True))
        if pair.ours.number in self.around or other_size:
            if is_wrong:
                self.suspected.append(event)
                return call.inputs, call.keywords
        else:
            self.decide(event, is_wrong)
        new = list(ours)
        for number, (index, axes, _) in enumerate(order):
            if index is not None:
                new[index] = axes.to_ours(theirs[number]).astype(ours[index].dtype)
        rest = iter(new)
        return map_arrays((call.inputs, call.keywords), lambda a: next(rest), lambda a: isinstance(a, np.ndarray))

    def decide(self, event: tuple[str, Check], is_wrong: bool) -> None:
        """What reaches a layer, or the network's end, tells whether the suspected events before it are differences."""
        if not is_wrong:
            self.dropped += self.suspected
        elif any(outer.has_wrong_input for outer in self.open):
            self.dropped += [*self.suspected, event]
        elif self.suspected:
            self.dropped += [*self.suspected[1:], event]
            for side, check in self.suspected:
                check.has_wrong_input |= side == "input"
        self.suspected = []

    def leave(self, call: Call) -> Any:
        pair = self.pairs.get((call.path, call.occurrence))
        if pair is None:
            return call.output
        check = self.open.pop()
        theirs, ours = pair.theirs.outputs, call.outputs
        prefer = {len(axes.permutation): axes.permutation for axes in reversed(pair.input_axes) if axes is not None}
        new, errors = list(ours), []
        pair.output_axes = []
        for number, (a, b) in enumerate(zip(theirs, ours, strict=False)):
            axes, error = self.votes.choose(a, b, prefer.get(a.ndim))
            pair.output_axes.append(axes)
            errors.append(error)
            new[number] = axes.to_ours(a).astype(b.dtype)
            if number == 0:
                check.our_output = axes.to_theirs(b)
        check.alone = max(errors, default=0.0)
        self.checks.append(check)
        event = "output", check
        self.events.append(event)
        is_wrong = check.alone >= CLOSE
        if check.inside and not self.open:
            self.decide(event, is_wrong)
        elif check.inside and is_wrong:
            if not check.has_wrong_input:
                self.suspected.append(event)
                return call.output
            self.dropped.append(event)
        elif check.inside:
            self.decide(event, False)
        elif any(other is check for _, other in self.suspected):
            self.decide(event, is_wrong)
        rest = iter(new)
        return map_arrays(call.output, lambda a: next(rest), lambda a: isinstance(a, np.ndarray))


def match_arguments(
    theirs: list[np.ndarray], ours: list[np.ndarray], votes: LayoutVotes
) -> list[tuple[int | None, Axes | None, float]]:
    """For each of their arrays: the number of ours, the axes and the relative error. None without a counterpart."""
    choices = {}
    for i, a in enumerate(theirs):
        for j, b in enumerate(ours):
            if np.issubdtype(a.dtype, np.floating) == np.issubdtype(b.dtype, np.floating) or a.size == b.size:
                choices[i, j] = votes.choose(a, b)
    found: dict[int, tuple] = {}
    used: set[int] = set()

    def cost(places):
        error = choices[places][1]
        return error >= CLOSE, abs(places[0] - places[1]), error

    for i, j in sorted(choices, key=cost):
        if i not in found and j not in used:
            found[i] = j, *choices[i, j]
            used.add(j)
    return [found.get(i, (None, None, 0.0)) for i in range(len(theirs))]


def layer_tolerance(pair: Pair, their: TorchNetwork, our: FlaxNetwork) -> float:
    """The tolerance for the output of a pair: larger if one side computes something in float32 or narrower."""
    seen = their.observe(pair.theirs)
    dtypes = set(seen) | our.dtypes_inside(pair.ours)
    return narrow_tolerance(dtypes, max(seen.values(), default=0.0), pair.theirs.outputs[:1])


def glue_tolerance(check: Check, their: TorchNetwork, their_calls: Sequence[Call]) -> float:
    """The tolerance for an input of a pair: larger if its values were rounded to float32 on one side.

    In theirs, anything before it that is float32 may have been rounded, such as phases of a time embedding.
    """
    target = check.pair.theirs.arrays[check.argument]
    parent = check.pair.theirs.parent
    if parent is None or not (is_float32(target) or is_float32(check.our_inputs[check.argument])):
        return TOLERANCE
    narrow = their.observe(their_calls[0]).get("float32") if is_float32(target) else None
    largest = max(their.observe(their_calls[parent]).values(), default=0.0) if narrow is None else narrow
    return narrow_tolerance({"float32"}, largest, [target])


def narrow_tolerance(dtypes: set[str], largest: float, outputs: list[np.ndarray]) -> float:
    epsilon = max((EPSILON.get(name, 0.0) for name in dtypes), default=0.0)
    scale = max((np.abs(array).max(initial=0) for array in outputs), default=0.0)
    return max(TOLERANCE, ROUNDINGS * epsilon * max(1.0, largest / (scale or 1.0)))


def is_float32(array: np.ndarray) -> bool:
    """Whether an array of float64 was rounded to float32."""
    with np.errstate(over="ignore"):
        return array.dtype == np.float64 and bool((array.astype(np.float32) == array).all()) and not is_whole(array)


def is_whole(array: np.ndarray) -> bool:
    """Whether all values are small integers, which float32 holds exactly."""
    return bool((array == np.round(array)).all())


def forced_run(
    pairs: Sequence[Pair],
    network: FlaxNetwork,
    arguments: tuple,
    keywords: Mapping[str, Any],
    votes: LayoutVotes,
    our_calls: Sequence[Call],
) -> Forced:
    """Run our network with every paired call's inputs and outputs replaced by theirs."""
    watcher = Forced(pairs, votes, our_calls)
    network.record(arguments, keywords, watcher)
    for side, check in watcher.dropped:
        if side == "input":
            check.arriving = [math.nan]
        else:
            check.alone = math.nan
    return watcher


def findings(
    watcher: Forced, their: TorchNetwork, our: FlaxNetwork, their_calls: Sequence[Call], our_calls: Sequence[Call]
) -> list[Finding]:
    """All places that differ, in the order of execution. None of them inherits from another."""
    found = []
    before: list[Pair] = []
    for side, check in watcher.events:
        pair = check.pair
        error = max(check.arriving, default=0.0) if side == "input" else check.alone
        tolerance = TOLERANCE
        if TOLERANCE < error < CLOSE:
            tolerance = (
                layer_tolerance(pair, their, our) if side == "output" else glue_tolerance(check, their, their_calls)
            )
            check.tolerance = max(check.tolerance, tolerance)
        if error > tolerance:
            found.append(
                finding(side, check, error, tolerance, list(before), watcher, their, our, their_calls, our_calls)
            )
        if side == "output" and (not check.inside or check.alone < CLOSE):
            before.append(pair)
    return found


def finding(side, check, error, tolerance, before, watcher, their, our, their_calls, our_calls) -> Finding:
    pair = check.pair
    is_glue = side == "input" or check.inside > 0
    around = enclosing(pair.theirs, their_calls)
    parents = [other.pair for other in watcher.checks if other.pair.theirs.number in around and has_right_input(other)]
    argument = check.argument if side == "input" else 0
    return Finding(
        place="glue" if is_glue else "layer",
        pair=pair,
        error=error,
        their_inputs=tuple(pair.theirs.arrays),
        our_inputs=check.our_inputs,
        their_output=next(iter(pair.theirs.outputs), None),
        our_output=check.our_output,
        run_theirs=lambda *arrays: their.run(pair.theirs, *arrays),
        run_ours=lambda *arrays: run_ours(our, pair, *arrays),
        before=before,
        parent=max(parents, key=lambda parent: parent.theirs.number, default=None),
        target=side,
        argument=argument,
        their_calls=their_calls,
        our_calls=our_calls,
        tolerance=tolerance,
        rerun=lambda *arrays: at_place(their, their_calls, pair.theirs, side, argument, arrays),
    )


def at_place(their: TorchNetwork, calls: Sequence[Call], place: Call, side: str, argument: int, arrays) -> np.ndarray:
    """What their network, with other array arguments, hands to a call or gets from it."""
    new = their.record(*with_arrays(calls[0], arrays))
    call = next(call for call in new if (call.path, call.occurrence) == (place.path, place.occurrence))
    return call.arrays[argument] if side == "input" else call.outputs[0]


def has_right_input(check: Check) -> bool:
    """Whether ours gets their input there. NaN, of modules that are cut differently, does not count."""
    return all(error < CLOSE for error in check.arriving)


def enclosing(call: Call, calls: Sequence[Call]) -> list[int]:
    """Numbers of the calls around a call."""
    numbers = []
    while call.parent is not None:
        numbers.append(call.parent)
        call = calls[call.parent]
    return numbers


def run_ours(network: FlaxNetwork, pair: Pair, *arrays: np.ndarray) -> np.ndarray:
    """Our layer alone on arrays in their layout; the output in their layout."""
    ours = list(pair.ours.arrays)
    for array, index, axes in zip(arrays, pair.order, pair.input_axes, strict=False):
        if index is not None:
            ours[index] = axes.to_ours(array).astype(ours[index].dtype)
    output = network.run(pair.ours, *ours)
    return pair.output_axes[0].to_theirs(output) if pair.output_axes else output


def inherited_errors(watcher: Forced, free_calls: Sequence[Call]) -> None:
    """Fill in the error of each output in a run in which nothing is replaced."""
    calls = {(call.path, call.occurrence): call for call in free_calls}
    for check in watcher.checks:
        call = calls[check.pair.ours.path, check.pair.ours.occurrence]
        outputs = zip(check.pair.theirs.outputs, call.outputs, check.pair.output_axes, strict=False)
        check.inherited = max((relative_error(axes.to_theirs(b), a) for a, b, axes in outputs), default=0.0)
