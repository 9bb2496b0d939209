"""Changes of an expression with a number that is solved for: factors, offsets, slopes, one more term."""

from collections.abc import Iterator, Sequence

import numpy as np

from jax_ddpm.doctor.causes.activation import read_off
from jax_ddpm.doctor.causes.expression import Node, Variant, act, add, everywhere, is_spread, nodes_of, view
from jax_ddpm.doctor.causes.hypothesis import number, rounded
from jax_ddpm.doctor.records import relative_error


def other_activation(tree: Node, ours: np.ndarray) -> Iterator[Variant]:
    """An activation with a number that is solved for."""
    found = read_off(tree.parts[0].value, ours) if tree.op == "act" else None
    if found is not None:
        says = f"the activation is {found[0]} in ours and {tree.label} in theirs"
        yield Variant("activation", says, act(found[0], tree.parts[0], found[2], found[1]))


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


def shortened(matrix: np.ndarray, factors: np.ndarray, k: int, ours: np.ndarray) -> float:
    """Factor k with few digits."""

    def fits(value: float) -> bool:
        tried = factors.copy()
        tried[k] = value
        return relative_error(matrix @ tried, ours.ravel()) < 1e-7

    return rounded(float(factors[k]), fits) or float(factors[k])


def extra_term(tree: Node, atoms: Sequence[Node], ours: np.ndarray) -> Iterator[Variant]:
    """Ours adds one more array, times a factor."""
    if ours.shape != tree.value.shape:
        return
    rest = (ours - tree.value).ravel()
    limit = 1e-7 * np.abs(rest).max(initial=0)
    for atom in atoms:
        if atom.value.shape != tree.value.shape or not atom.value.any():
            continue
        values = atom.value.ravel()
        factor = float(values @ rest / (values @ values))
        if np.abs(factor * values - rest).max() <= max(limit, 1e-37):
            factor = rounded(factor, lambda f, v=values: np.abs(f * v - rest).max() <= limit) or factor
            kind = "term_extra" if is_spread(atom) else "residual_extra"
            kind = "bias_doubled" if atom.parts and atom.parts[0].label.endswith(".bias") and factor == 1 else kind
            size = "" if abs(factor) == 1 else f"{number(abs(factor))} * "
            says = f"ours adds {size}{atom.said()}, theirs does not"
            if factor < 0:
                kind, says = kind.replace("extra", "missing"), f"theirs adds {size}{atom.said()}, ours does not"
            yield Variant(kind, says, add([tree, atom], [1, factor]))
