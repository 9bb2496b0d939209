"""What stands between modules: find their expression, then the mistake in it that gives ours."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from flax import nnx

from jax_ddpm.doctor.causes import activation, embedding, inputs, operations, padding, resampling
from jax_ddpm.doctor.causes.expression import Node, tensor, views
from jax_ddpm.doctor.causes.hypothesis import UNFIT, Hypothesis, is_rounded_to
from jax_ddpm.doctor.causes.search import Search
from jax_ddpm.doctor.causes.variants import variants
from jax_ddpm.doctor.records import Call, Finding
from jax_ddpm.doctor.source import argument_names, scope

MENDS = {
    "height_width_swapped": "Swap axes 1 and 2 of (B, H, W, C) once less or once more.",
    "dropout": "Call model.eval().",
}


def materials(finding: Finding, only_paired: bool = False) -> list[Node]:
    """Outputs and inputs of modules that came before, inputs and parameters of those around, newest first.

    only_paired: without modules of theirs that ours has no counterpart of, where they have no parameters, such as an
    activation that ours writes as a function.
    """
    found: list[Node] = []
    names = {(pair.theirs.path, pair.theirs.occurrence): pair.ours.path for pair in finding.before}
    earlier = earlier_calls(finding)
    if only_paired:
        earlier = [call for call in earlier if (call.path, call.occurrence) in names or is_projection(call)]
    around_ours = scope(finding)
    own_names = argument_codes(finding, around_ours)
    for call in earlier:
        if is_unchanged(call):
            continue
        ours = names.get((call.path, call.occurrence), call.path)
        for index, array in enumerate(call.arrays):
            if array.dtype.kind in "fiu":
                found.append(of_call(f"the input of {call.path}", f"(input of {ours})", index, array))
        for index, array in enumerate(call.outputs):
            found.append(of_call(call.path, output_code(ours, around_ours), index, array))
    around = enclosing(finding)
    for call in around:
        name = call.path or "the network"
        if only_paired and call.path and not is_paired(call, finding):
            continue
        for index, array in enumerate(call.arrays):
            node = of_call(f"the input of {name}", f"(input of {name})", index, array)
            own = own_names.get(index, "") if call is around[0] else ""
            found.insert(0, replace(node, code=own) if own else node)
    for call in [*around, *earlier]:
        for parameter, array in call.parameters.items():
            if call in around or array.ndim == 1:
                path = f"{call.path}.{parameter}".lstrip(".")
                found.insert(0, tensor(path, path, np.asarray(array, np.float64)))
    return list(unique(reversed(found)))


def argument_codes(finding: Finding, around: Call | None) -> dict[int, str]:
    """Names of the arguments of our module whose code stands there, by the number of their array."""
    pair = finding.pair if finding.target == "output" else finding.parent
    if around is None or pair is None or pair.ours is not around:
        return {}
    names = argument_names(around)
    return {k: names[index] for k, index in enumerate(pair.order) if index is not None}


def output_code(path: str, around: Call | None) -> str:
    """How the code of our module `around` writes the output of a layer: "self.conv(...)" for one of its own."""
    if around is None:
        return path
    inside = path.removeprefix(f"{around.path}.") if around.path else path
    is_own = isinstance(around.module, nnx.Module) and (inside != path or not around.path) and inside.isidentifier()
    return f"self.{inside}(...)" if is_own else f"(output of {path})"


def is_unchanged(call: Call) -> bool:
    """Whether a call returns its input, as nn.Identity does."""
    if call.parameters or not call.arrays or not call.outputs:
        return False
    return call.arrays[0].shape == call.outputs[0].shape and np.array_equal(call.arrays[0], call.outputs[0])


def is_projection(call: Call) -> bool:
    """Whether parameters take part in a call: its own, or those of an attention that `open_attention` opened."""
    return bool(call.parameters) or call.kind == "Projection"


def is_paired(call: Call, finding: Finding) -> bool:
    """Whether a call around the place of the finding is known to have a partner."""
    return call is finding.pair.theirs or (finding.parent is not None and call is finding.parent.theirs)


def earlier_calls(finding: Finding) -> list[Call]:
    """Their calls that ended before the place of the finding."""
    last = finding.pair.theirs.number
    if finding.target == "output":
        inside = {last}
        for call in finding.their_calls:
            if call.parent in inside:
                inside.add(call.number)
        last = max(inside) + 1
    around = {call.number for call in enclosing(finding)} | {finding.pair.theirs.number}
    calls = [call for call in finding.their_calls if call.number < last and call.number not in around]
    return calls or [pair.theirs for pair in finding.before]


def enclosing(finding: Finding) -> list[Call]:
    """Their calls around the place of the finding, innermost first."""
    by_number = {call.number: call for call in finding.their_calls}
    found = [finding.pair.theirs] if finding.target == "output" else []
    parent = finding.pair.theirs.parent
    while parent is not None and parent in by_number:
        found.append(by_number[parent])
        parent = by_number[parent].parent
    return found


def of_call(theirs: str, ours: str, index: int, array: np.ndarray) -> Node:
    suffix = f"[{index}]" if index else ""
    return tensor(theirs + suffix, ours + suffix, np.asarray(array, np.float64))


def unique(nodes) -> Iterator[Node]:
    """Of equal arrays one, an output before inputs, with the labels of the others."""
    nodes = list(nodes)
    nodes = [n for n in nodes if not n.label.startswith("the input of")] + [
        n for n in nodes if n.label.startswith("the input of")
    ]
    equal: dict[tuple, list[Node]] = {}
    for node in nodes:
        key = (node.value.shape, node.value.tobytes() if node.value.size < 4096 else node.value.ravel()[::97].tobytes())
        equal.setdefault(key, []).append(node)
    for first, *others in equal.values():
        own = next((node for node in (first, *others) if node.code.isidentifier()), first)
        yield replace(first, words=own.words, code=own.code, aliases=tuple(other.label for other in others))


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    """Of a finding between modules."""
    theirs, ours = finding.values
    nodes = materials(finding)
    times = [node.value for node in nodes if node.value.ndim <= 2 and node.value.size == len(theirs)]
    yield from embedding.hypotheses(finding, times)
    yield from padding.hypotheses(finding)
    yield from of_another_size(theirs, ours)
    paired = materials(finding, only_paired=True)
    if len(paired) < len(nodes):
        yield from explained(theirs, ours, paired, only_known=True)
    yield from operations.hypotheses(theirs, ours, nodes)
    yield from explained(theirs, ours, nodes)
    yield from inputs.of_network(finding)
    yield from activation_of_ours(theirs, ours)


def activation_of_ours(theirs: np.ndarray, ours: np.ndarray) -> Iterator[Hypothesis]:
    """Theirs is an activation of ours, however ours is computed."""
    found = activation.read_off(ours, theirs)
    if found is not None and "identity" not in found[0]:
        says = f"ours leaves out {found[0]}, which theirs applies to the same array"
        yield Hypothesis("activation_missing", says, f"Write {found[1].format(x='x')}.", lambda *_: ours)


def of_another_size(theirs: np.ndarray, ours: np.ndarray) -> Iterator[Hypothesis]:
    """One of the two arrays is the other one, padded or resampled."""
    if theirs.shape == ours.shape:
        return
    found = resampling.read_off(ours, theirs)
    if found is not None:
        says = f"theirs is ours, {found[1]}; ours is not"
        name = "padding" if found[0] == "padding" else "resampling_missing"
        yield Hypothesis(name, says, f"Write {resampling.written(found[1])}.", lambda *_: ours)
    found = resampling.read_off(theirs, ours)
    if found is not None:
        says = f"ours is theirs, {found[1]}; theirs is not"
        name = "padding" if found[0] == "padding" else "resampling_extra"
        yield Hypothesis(name, says, "Leave that out.", lambda *_: ours)


def around(finding: Finding) -> Iterator[Hypothesis]:
    """Of a layer: what ours may do besides to the input or the output."""
    name = finding.pair.theirs.path or "the network"
    output = tensor(f"the output of {name}", "y", finding.their_output)
    inputs = [tensor(f"its input {k}" if k else "its input", "x", x) for k, x in enumerate(finding.their_inputs)]
    for variant in variants(output, atoms_of(inputs, output.value.shape), finding.our_output):
        yield Hypothesis(variant.name, variant.says, "Change that in ours.", lambda *_, v=variant: v.tree.value)
    parameters = [tensor(f"{name}.{key}", key, value) for key, value in finding.pair.theirs.parameters.items()]
    yield from explained(finding.their_output, finding.our_output, [*inputs, *parameters])


def atoms_of(nodes: list[Node], shape: tuple[int, ...]) -> list[Node]:
    return [atom for node in nodes for atom in views(node, shape)]


def explained(
    theirs: np.ndarray, ours: np.ndarray, nodes: list[Node], only_known: bool = False
) -> Iterator[Hypothesis]:
    """Theirs as an expression over `nodes`, its variants, and then any expression for ours.

    only_known: nothing if theirs is no expression over them.
    """
    try:
        found = Search(theirs, nodes).find()
    except UNFIT:
        found = None
    if found is None and only_known:
        return
    tree = found or tensor("theirs", "theirs", theirs)
    mend = f"Write {tree.written()}." if found is not None else "Compare the two lines that compute it."
    atoms = atoms_of(nodes, theirs.shape)
    for part_shape in {part.value.shape for part in tree.parts} - {theirs.shape}:
        atoms += atoms_of(nodes, part_shape)
    for variant in variants(tree, atoms, ours, found is not None):
        line = variant.mend or MENDS.get(variant.name, mend)
        yield Hypothesis(variant.name, variant.says, line, lambda *_, v=variant: v.tree.value)
    tolerance = 1e-6 if is_rounded_to(ours, np.float32) else 1e-9
    other = Search(ours, nodes, tolerance).find()
    if other is not None:
        said = f"theirs is {tree.said()}" if found is not None else "theirs is something else"
        yield Hypothesis("expression", f"ours is {other.said()}, {said}", mend, lambda *_: other.value)
