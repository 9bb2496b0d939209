"""Attention as an expression over outputs of modules: which of them may be query, key and value."""

from collections.abc import Iterator, Sequence

import numpy as np

from jax_ddpm.doctor.causes import attention
from jax_ddpm.doctor.causes.expression import Node
from jax_ddpm.doctor.causes.hypothesis import number

PACKED = 8
"""So many of the newest arrays may be projections that are one array."""


def as_tokens(shape: tuple[int, ...]):
    """(B, C, N, function to (B, N, C), function back) for images or tokens."""
    if len(shape) == 4:
        b, c, h, w = shape
        return b, c, h * w, lambda v: v.reshape(b, -1, h * w).mT, lambda v: v.mT.reshape(b, -1, h, w)
    return shape[0], shape[2], shape[1], lambda v: v, lambda v: v


def projections(
    materials: Sequence[Node], b: int, n: int, c: int
) -> Iterator[tuple[Node, bool, tuple[int, int] | None]]:
    """Arrays (B, N, 3C) of projections, newest first: one array, or the newest three side by side.

    Besides, whether they are one array, and the numbers of queries and keys where they differ, as in cross-attention.
    """
    for node in materials[:PACKED]:
        packed = tokens(node, b, n, 3 * c)
        if packed is not None:
            yield Node("tensor", node.label, node.words, node.code, given=packed), True, None
    outputs = [node for node in materials if node.op == "tensor" and not node.label.startswith("the input")]
    newest = [node for node in outputs if tokens(node, b, n, c) is not None]
    if len(newest) >= 3:
        yield side_by_side([newest[k] for k in (2, 1, 0)], b, (n, n, n), c), False, None
    shapes = [node.value.shape for node in outputs]
    for m in {shape[1] for shape in shapes if len(shape) == 3 and shape[0] == b and shape[2] == c} - {n}:
        others = [node for node in outputs if tokens(node, b, m, c) is not None]
        if len(others) >= 2:
            for query in newest[:3]:
                yield side_by_side([query, others[1], others[0]], b, (n, m, m), c), False, (n, m)


def tokens(node: Node, b: int, n: int, c: int) -> np.ndarray | None:
    """An array as (B, N, C): an image, tokens, or heads (B, heads, N, d)."""
    v = node.value
    if v.ndim == 4 and v.shape[:2] == (b, c) and v.shape[2] * v.shape[3] == n:
        return v.reshape(b, c, n).mT
    if v.shape == (b, n, c):
        return v
    if v.shape == (b, c, n):
        return v.mT
    if v.ndim == 4 and v.shape[0] == b and v.shape[2] == n and v.shape[1] * v.shape[3] == c:
        return v.transpose(0, 2, 1, 3).reshape(b, n, c)
    return None


def side_by_side(nodes: Sequence[Node], b: int, lengths: Sequence[int], c: int) -> Node:
    """Query, key and value as one array, the shorter ones padded with zeros."""
    packed = np.zeros((b, max(lengths), 3 * c))
    for k, (node, length) in enumerate(zip(nodes, lengths, strict=True)):
        packed[:, :length, k * c : (k + 1) * c] = tokens(node, b, length, c)
    names, codes = (", ".join(getattr(node, name) for node in nodes) for name in ("words", "code"))
    return Node("tensor", "projections", names, codes, given=packed)


def attend(packed: Node, form: attention.Form, shape: tuple[int, ...], is_packed: bool) -> Node:
    """Attention of packed projections, in the layout of `shape`."""
    _, c, _, _, from_tokens = as_tokens(shape)
    text = f"attention of {{0}} with {form.heads} heads and scale {number(form.scale_for(c))}"

    def function(value: np.ndarray) -> np.ndarray:
        return from_tokens(form.apply(value))

    return Node("attention", "packed" if is_packed else "apart", text, text, function, (packed,), form=form)
