"""Mistakes that a port makes between modules: trees one change away from theirs, each with the name of its cause."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from jax_ddpm.doctor.causes import attention, resampling
from jax_ddpm.doctor.causes.activation import FORMULAS
from jax_ddpm.doctor.causes.attention_nodes import as_tokens, attend
from jax_ddpm.doctor.causes.expression import (
    MODULATIONS,
    Node,
    Variant,
    act,
    add,
    concatenate,
    everywhere,
    is_spread,
    modulate,
    view,
    views,
)
from jax_ddpm.doctor.causes.hypothesis import UNFIT
from jax_ddpm.doctor.causes.moved_variants import moved, rolled_channels
from jax_ddpm.doctor.causes.solved_variants import extra_term, other_activation, solved_factor_inside, solved_factors


def variants(tree: Node, atoms: Sequence[Node], ours: np.ndarray, is_known: bool = True) -> Iterator[Variant]:
    """All trees one change away from `tree`, for an array of ours.

    atoms: arrays with the shape of theirs. is_known: whether `tree` says how theirs is computed; else it is one array.
    """
    families = [
        *(partial(everywhere, tree, kind) for kind in (of_sum, of_activation, of_concatenation, of_view)),
        *(partial(everywhere, tree, kind) for kind in (of_modulation, of_product)),
        partial(of_attention, tree, ours),
        partial(of_resampling, tree, ours),
        partial(rolled_channels, tree, ours),
        partial(solved_factors, tree, ours),
        partial(solved_factor_inside, tree, ours),
        partial(everywhere, tree, activation_around),
        partial(other_activation, tree, ours),
        partial(moved, tree),
        partial(everywhere, tree, partial(another_tensor, atoms=atoms if is_known else ())),
        partial(extra_term, tree, atoms, ours),
        partial(everywhere, tree, partial(term_inside, atoms=[atom for atom in atoms if is_spread(atom)])),
    ]
    for family in families:
        try:
            yield from family()
        except UNFIT:  # this kind of change does not fit these shapes
            continue


def of_sum(node: Node) -> Iterator[Variant]:
    """A term missing, doubled or subtracted."""
    if node.op != "sum":
        return
    for index, (part, factor) in enumerate(zip(node.parts, node.factors, strict=True)):
        rest = [k for k in range(len(node.parts)) if k != index]
        kind = "term" if is_spread(part) else "residual"
        if rest:
            kept = add([node.parts[k] for k in rest], [node.factors[k] for k in rest], float(node.label))
            yield Variant(f"{kind}_missing", f"ours does not add {part.said()}", kept)
        for name, says, by in (
            ("doubled", "ours adds {} twice", 2),
            ("subtracted", "ours subtracts {}", -1),
            ("halved", "ours adds half of {}", 0.5),
        ):
            factors = [*node.factors[:index], factor * by, *node.factors[index + 1 :]]
            changed = add(node.parts, factors, float(node.label))
            yield Variant(f"{kind}_{name}", says.format(part.said()), changed)
    if float(node.label):
        yield Variant("constant", f"ours does not add {node.label}", add(node.parts, node.factors))
        without = add(node.parts, [1.0] * len(node.parts))
        yield Variant("input_range", f"ours has {without.said()}, theirs {node.said()}", without)
    activated = [k for k, part in enumerate(node.parts) if part.op == "act"]
    for k in activated:
        inner = node.with_part(k, node.parts[k].parts[0])
        yield moved_activation(node, act(node.parts[k].label, inner, node.parts[k].function, node.parts[k].code))
    for k, j in itertools.permutations(range(len(node.parts)), 2):
        if k in activated:
            on_other = node.with_part(k, node.parts[k].parts[0])
            on_other = on_other.with_part(j, like(node.parts[k], node.parts[j]))
            yield moved_activation(node, on_other)


def like(activation: Node, part: Node) -> Node:
    """The activation of another array."""
    return activation.with_part(0, part)


def moved_activation(theirs: Node, ours: Node) -> Variant:
    return Variant("activation_order", f"ours computes {ours.said()}, theirs {theirs.said()}", ours)


def of_activation(node: Node) -> Iterator[Variant]:
    """Another activation, none, two; before a sum in place of after it."""
    if node.op != "act":
        return
    part = node.parts[0]
    yield Variant("activation_missing", f"ours leaves out {node.label}", part)
    for name in FORMULAS:
        if name not in (node.label, "identity"):
            yield Variant("activation", f"the activation is {name} in ours and {node.label} in theirs", act(name, part))
    yield Variant("activation_doubled", f"ours applies {node.label} twice", like(node, node))
    if part.op == "sum":
        for count in range(1, len(part.parts) + 1):
            for chosen in itertools.combinations(range(len(part.parts)), count):
                inside = part
                for k in chosen:
                    inside = inside.with_part(k, like(node, part.parts[k]))
                yield moved_activation(node, inside)
    if part.op in ("modulate", "product", "concatenate"):
        for k in range(len(part.parts)):
            yield moved_activation(node, part.with_part(k, like(node, part.parts[k])))


def activation_around(node: Node) -> Iterator[Variant]:
    for name in FORMULAS:
        if name != "identity" and node.op != "act":
            yield Variant("activation_extra", f"ours applies {name} to {node.said()}, theirs does not", act(name, node))


def of_concatenation(node: Node) -> Iterator[Variant]:
    """Another order of the parts, interleaved channels, another axis."""
    if node.op != "concatenate":
        return
    axis = int(node.label)
    for order in itertools.permutations(node.parts):
        if order != node.parts:
            changed = concatenate(order, axis)
            says = f"ours concatenates {changed.said()}, theirs {node.said()}"
            yield Variant("concatenation_order", says, changed)
    shapes = {part.value.shape for part in node.parts}
    if len(shapes) == 1:
        n = len(node.parts)

        def interleaved(value: np.ndarray) -> np.ndarray:
            shape = value.shape
            grouped = value.reshape(*shape[:axis], n, shape[axis] // n, *shape[axis + 1 :])
            return grouped.swapaxes(axis, axis + 1).reshape(shape)

        says = f"ours takes the channels of {node.said()} in turns, theirs one array after the other"
        yield Variant("concatenation_order", says, view("in turns", "{0} in turns", "{0}", interleaved, node))


def of_view(node: Node) -> Iterator[Variant]:
    """Another way to the same shape."""
    if node.op != "view":
        return
    for other in views(node.parts[0], node.value.shape):
        if other.op == "view" and other.label != node.label:
            name = "flatten_order" if "flattened" in node.label or node.label == "tokens by rows" else "axes_order"
            if node.label.startswith(("mean of pixels", "maximum of pixels")):
                name = "pooling"
            elif "token" in node.label and "tokens by" not in node.label:
                name = "token"
            elif node.label.startswith("part "):
                name = "halves_swapped"
            elif node.label.startswith("pixel shuffle"):
                name = "pixel_shuffle"
            yield Variant(name, f"ours has {other.said()}, theirs {node.said()}", other)


def of_modulation(node: Node) -> Iterator[Variant]:
    """Scale and shift swapped, or another formula."""
    if node.op != "modulate":
        return
    h, scale, shift = node.parts
    swapped = modulate(node.label, h, shift, scale)
    says = f"scale and shift are swapped in ours: scale is {shift.said()} in ours and {scale.said()} in theirs"
    yield Variant("scale_shift_swapped", says, swapped)
    for form in MODULATIONS:
        if form != node.label:
            says = f"ours computes {form}, theirs {node.label}"
            yield Variant("scale_shift", says, modulate(form, h, scale, shift))
            yield Variant("scale_shift", f"{says}, with scale and shift swapped", modulate(form, h, shift, scale))


def of_product(node: Node) -> Iterator[Variant]:
    """A factor missing; the activation on another factor, such as on the other half of a gated layer."""
    if node.op != "product":
        return
    for index, part in enumerate(node.parts):
        others = [p for k, p in enumerate(node.parts) if k != index]
        if len(others) == 1:
            yield Variant("factor_missing", f"ours does not multiply by {part.said()}", others[0])
    for k, j in itertools.permutations(range(len(node.parts)), 2):
        if node.parts[k].op == "act" and node.parts[j].op != "act":
            changed = node.with_part(k, node.parts[k].parts[0]).with_part(j, like(node.parts[k], node.parts[j]))
            name = "halves_swapped" if are_parts(node.parts[j], node.parts[k].parts[0]) else "activation_order"
            yield Variant(name, f"ours computes {changed.said()}, theirs {node.said()}", changed)


def are_parts(a: Node, b: Node) -> bool:
    """Whether two nodes are parts of the channels of one array."""
    return a.label.startswith("part ") and b.label.startswith("part ") and a.parts[0].label == b.parts[0].label


def of_attention(tree: Node, ours: np.ndarray) -> Iterator[Variant]:
    """Another form of attention, if attention is the whole tree."""
    if tree.op != "attention" or ours.shape != tree.value.shape:
        return
    _, c, _, to_tokens, _ = as_tokens(tree.value.shape)
    packed = tree.parts[0].value
    for value in (to_tokens(ours), to_tokens(ours.mT) if ours.ndim == 4 and ours.shape[2] == ours.shape[3] else None):
        form = None if value is None else attention.read_off(packed, value, tree.form, tree.label == "packed")
        if form is not None and form != tree.form:
            name, says, mend = attention.difference(tree.form, form, c)
            yield Variant(name, says, attend(tree.parts[0], form, tree.value.shape, tree.label == "packed"), mend)


def of_resampling(tree: Node, ours: np.ndarray) -> Iterator[Variant]:
    """Another method, where resampling is the whole tree or the part of a sum, of an activation or a concatenation."""

    def kind(node: Node) -> Iterator[Variant]:
        if node.op != "resample":
            return
        x, target = node.parts[0].value, node.value.shape[2:]
        for found in resampling.methods(x.shape[2:], target if node is not tree else ours.shape[2:]):
            if found[1] != node.label:
                name, says, mend = resampling.difference(("", node.label), found)
                changed = Node("resample", found[1], f"{{0}} resampled ({found[1]})", "{0}", found[2], node.parts)
                yield Variant(name, says, changed, mend)

    yield from everywhere(tree, kind)


def another_tensor(node: Node, atoms: Sequence[Node]) -> Iterator[Variant]:
    """Another array of the same shape in the place of one."""
    if node.op != "tensor" and not (node.op == "view" and node.parts[0].op == "tensor"):
        return
    seen = {tensor.label for tensor in node.tensors()}
    for other in atoms:
        if other.value.shape == node.value.shape and {tensor.label for tensor in other.tensors()} != seen:
            says = f"ours takes {other.said()}, theirs {node.said()}"
            if node.op == other.op == "tensor" and f"the input of {node.label}" in (other.label, *other.aliases):
                yield Variant("layer_missing", f"ours leaves out {node.label}: {says}", other)
            yield Variant("another_tensor", says, other)


def term_inside(node: Node, atoms: Sequence[Node]) -> Iterator[Variant]:
    """Ours adds one more vector, such as a bias, to an array inside the expression."""
    if node.op != "tensor" and not (node.op == "view" and node.parts[0].op == "tensor"):
        return
    for atom in atoms:
        if atom.value.shape == node.value.shape:
            kind = "bias_doubled" if atom.parts[0].label.endswith(".bias") else "term_extra"
            says = f"ours adds {atom.said()} to {node.said()}, theirs does not"
            yield Variant(kind, says, add([node, atom]))
