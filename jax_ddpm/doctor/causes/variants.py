"""Mistakes that a port makes between modules: trees one change away from theirs, each with the name of its cause."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from jax_ddpm.doctor.causes import attention, resampling
from jax_ddpm.doctor.causes.activation import FORMULAS, read_off
from jax_ddpm.doctor.causes.attention_nodes import as_tokens, attend
from jax_ddpm.doctor.causes.expression import MODULATIONS, Node, act, add, concatenate, modulate, view, views
from jax_ddpm.doctor.causes.hypothesis import UNFIT, divisors, number, rounded
from jax_ddpm.doctor.records import relative_error


@dataclass
class Variant:
    """What ours may compute in place of `tree`."""

    name: str
    says: str
    tree: Node
    mend: str = ""
    """The line to change, if it is another than the whole expression of theirs."""


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


def everywhere(tree: Node, kind) -> Iterator[Variant]:
    """The variants of every node of a tree, outermost first."""
    yield from kind(tree)
    for index, part in enumerate(tree.parts):
        for variant in everywhere(part, kind):
            yield Variant(variant.name, variant.says, tree.with_part(index, variant.tree), variant.mend)


def is_spread(node: Node) -> bool:
    """Whether a term is a vector that is added to all pixels or tokens, such as the time."""
    return node.op == "view" and node.label.startswith("to all")


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


def other_activation(tree: Node, ours: np.ndarray) -> Iterator[Variant]:
    """An activation with a number that is solved for."""
    found = read_off(tree.parts[0].value, ours) if tree.op == "act" else None
    if found is not None:
        says = f"the activation is {found[0]} in ours and {tree.label} in theirs"
        yield Variant("activation", says, act(found[0], tree.parts[0], found[2], found[1]))


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


def solved_factors(tree: Node, ours: np.ndarray) -> Iterator[Variant]:
    """Factors of a sum's terms, or of the whole, and a constant, by least squares."""
    if ours.shape != tree.value.shape:
        return
    parts = tree.parts if tree.op == "sum" else (tree,)
    for constant in (False, True):
        columns = [part.value.ravel() for part in parts] + [np.ones(ours.size)] * constant
        matrix = np.stack(columns, axis=1)
        factors, _, rank, _ = np.linalg.lstsq(matrix, ours.ravel(), rcond=1e-12)
        if rank < len(columns) or relative_error(matrix @ factors, ours.ravel()) > 1e-7:
            continue
        short = [shortened(matrix, factors, k, ours) for k in range(len(factors))]
        offset = short.pop() if constant else 0.0
        changed = add(parts, short, offset)
        old = tree if tree.op == "sum" else add([tree])
        ratios = [new / before for new, before in zip(short, old.factors, strict=True)]
        name = (
            "offset"
            if offset and all(r == 1 for r in ratios)
            else "scale"
            if len(set(ratios)) == 1
            else "residual_scaled"
        )
        yield Variant(name, f"ours computes {changed.said()}, theirs {tree.said()}", changed)


def solved_factor_inside(tree: Node, ours: np.ndarray) -> Iterator[Variant]:
    """A factor of one part inside, if ours is linear in it."""
    if ours.shape != tree.value.shape or tree.op not in ("sum", "concatenate", "view", "resample"):
        return

    def kind(node: Node) -> Iterator[Variant]:
        if node is not tree and node.value.dtype.kind == "f":
            yield Variant("scale", "", add([node], [0.0]))

    paths = list(everywhere(tree, kind))
    for without, part in zip(paths, (node for node in nodes_of(tree) if node is not tree), strict=False):
        base = without.tree.value
        change = tree.value - base
        if not change.any():
            continue
        factor = float(np.sum((ours - base) * change) / np.sum(change * change))
        if np.abs(base + factor * change - ours).max() < 1e-7 * np.abs(ours).max():
            limit = 1e-7 * np.abs(ours).max()
            factor = rounded(factor, lambda f, b=base, c=change, e=limit: np.abs(b + f * c - ours).max() < e) or factor
            says = f"ours multiplies {part.said()} by {number(factor)}, theirs does not"
            yield Variant("scale", says, view("scaled", "{0}", "{0}", lambda _, v=base + factor * change: v, tree))


def nodes_of(tree: Node) -> Iterator[Node]:
    """All nodes of a tree, outermost first, as `everywhere` visits them."""
    yield tree
    for part in tree.parts:
        yield from nodes_of(part)


def shortened(matrix: np.ndarray, factors: np.ndarray, k: int, ours: np.ndarray) -> float:
    """Factor k with few digits."""

    def fits(value: float) -> bool:
        tried = factors.copy()
        tried[k] = value
        return relative_error(matrix @ tried, ours.ravel()) < 1e-7

    return rounded(float(factors[k]), fits) or float(factors[k])


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


def extra_term(tree: Node, atoms: Sequence[Node], ours: np.ndarray) -> Iterator[Variant]:
    """Ours adds one more array, times a factor."""
    if ours.shape != tree.value.shape:
        return
    rest = (ours - tree.value).ravel()
    for atom in atoms:
        values = np.broadcast_to(atom.value, tree.value.shape).ravel() if atom.value.shape == tree.value.shape else None
        if values is None or not values.any():
            continue
        factor = float(values @ rest / (values @ values))
        if np.abs(factor * values - rest).max() <= 1e-7 * max(np.abs(rest).max(), 1e-30):
            factor = (
                rounded(factor, lambda f, v=values: np.abs(f * v - rest).max() <= 1e-7 * np.abs(rest).max()) or factor
            )
            kind = "term_extra" if is_spread(atom) else "residual_extra"
            kind = "bias_doubled" if atom.parts and atom.parts[0].label.endswith(".bias") and factor == 1 else kind
            size = "" if abs(factor) == 1 else f"{number(abs(factor))} * "
            says = f"ours adds {size}{atom.said()}, theirs does not"
            if factor < 0:
                kind, says = kind.replace("extra", "missing"), f"theirs adds {size}{atom.said()}, ours does not"
            yield Variant(kind, says, add([tree, atom], [1, factor]))


def term_inside(node: Node, atoms: Sequence[Node]) -> Iterator[Variant]:
    """Ours adds one more vector, such as a bias, to an array inside the expression."""
    if node.op != "tensor" and not (node.op == "view" and node.parts[0].op == "tensor"):
        return
    for atom in atoms:
        if atom.value.shape == node.value.shape:
            kind = "bias_doubled" if atom.parts[0].label.endswith(".bias") else "term_extra"
            says = f"ours adds {atom.said()} to {node.said()}, theirs does not"
            yield Variant(kind, says, add([node, atom]))


def rolled_channels(tree: Node, ours: np.ndarray) -> Iterator[Variant]:
    """The first channels of theirs are the last ones of ours: two arrays are joined the other way round."""
    theirs = tree.value
    if theirs.shape != ours.shape or theirs.ndim < 2:
        return
    axis = 1 if theirs.ndim == 4 else theirs.ndim - 1
    first = np.take(theirs, 0, axis)
    limit = 1e-6 * max(np.abs(theirs).max(), 1e-30)
    for k in range(1, theirs.shape[axis]):
        if np.abs(np.take(ours, k, axis) - first).max() <= limit:
            n = theirs.shape[axis] - k
            says = f"ours joins two arrays the other way round: its first {k} channels are the last of theirs"
            order = np.roll(np.arange(n + k), k)
            joined = view("rolled", "{0}", "{0}", lambda v, order=order: np.take(v, order, axis), tree)
            yield Variant("concatenation_order", says, joined, "Swap the two arrays in jnp.concatenate.")


def moved(tree: Node) -> Iterator[Variant]:
    """The whole array with its axes swapped, reversed or its channels in another order."""
    shape = tree.value.shape
    options = []
    if len(shape) == 4:
        options += [
            ("height_width_swapped", "height and width are swapped in ours", lambda v: v.mT),
            ("image_flipped", "ours is flipped from left to right", lambda v: v[..., ::-1]),
            ("image_flipped", "ours is flipped from top to bottom", lambda v: v[..., ::-1, :]),
            ("image_flipped", "ours is rotated by 180 degrees", lambda v: v[..., ::-1, ::-1]),
            ("axes_order", "ours is reshaped from NHWC to NCHW without moving the axes", unmoved),
            ("axes_order", "ours is reshaped from NCHW to NHWC without moving the axes", unmoved_back),
        ]
        for rows, columns in ((1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1)):
            says = f"ours is shifted by {rows} rows and {columns} columns, round the edges"
            options.append(("image_shifted", says, lambda v, by=(rows, columns): np.roll(v, by, (2, 3))))
    if len(shape) == 3:
        options.append(("axes_order", "the last two axes are swapped in ours", lambda v: v.mT))
    if len(shape) > 1:
        axis = 1 if len(shape) == 4 else len(shape) - 1
        c = shape[axis]
        options.append(("channels_permuted", "the channels are in reverse order in ours", lambda v: np.flip(v, axis)))
        for g in divisors(c)[1:-1]:
            says = f"the channels of ours are regrouped from {g} x {c // g} to {c // g} x {g}"
            order = np.arange(c).reshape(g, c // g).T.ravel()
            options.append(("channels_permuted", says, lambda v, order=order: np.take(v, order, axis)))
    for name, says, function in options:
        yield Variant(name, says, view(name, "{0}", "{0}", function, tree))


def unmoved(v: np.ndarray) -> np.ndarray:
    b, c, h, w = v.shape
    return v.transpose(0, 2, 3, 1).reshape(b, c, h, w)


def unmoved_back(v: np.ndarray) -> np.ndarray:
    b, c, h, w = v.shape
    return v.reshape(b, h, w, c).transpose(0, 3, 1, 2)
