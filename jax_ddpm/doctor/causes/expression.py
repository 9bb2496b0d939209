"""What is computed between modules, as a tree over outputs and inputs of modules. Arrays are in their layout."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jax_ddpm.doctor.causes.activation import FORMULAS
from jax_ddpm.doctor.causes.hypothesis import number


@dataclass(frozen=True, eq=False)
class Node:
    """One operation, or an array with a name."""

    op: str
    """ "tensor", "act", "sum", "concatenate", "resample", "view", "modulate", "product" or "attention"."""
    label: str
    """Which one: the name of the activation, the method of resampling, the tensor's name."""
    words: str
    """How a sentence says it. {0}, {1}, ... stand for the parts."""
    code: str
    """How our code writes it."""
    function: Callable | None = None
    """Values of the parts -> value."""
    parts: tuple["Node", ...] = ()
    given: np.ndarray | None = None
    factors: tuple[float, ...] = ()
    """Of a sum's terms."""
    form: Any = None
    """Of attention: its `attention.Form`."""
    aliases: tuple[str, ...] = ()
    """Of a tensor: the labels of others that are the same array."""

    @cached_property
    def value(self) -> np.ndarray:
        return self.given if self.given is not None else self.function(*(part.value for part in self.parts))

    def said(self) -> str:
        return self.words.format(*(part.said() for part in self.parts))

    def written(self) -> str:
        return self.code.format(*(part.written() for part in self.parts))

    def with_part(self, index: int, part: "Node") -> "Node":
        return replace(self, parts=(*self.parts[:index], part, *self.parts[index + 1 :]))

    def tensors(self) -> Iterator["Node"]:
        if self.op == "tensor":
            yield self
        for part in self.parts:
            yield from part.tensors()


@dataclass(frozen=True)
class Variant:
    """What ours may compute in place of `tree`."""

    name: str
    says: str
    tree: Node
    mend: str = ""
    """The line to change, if it is another than the whole expression of theirs."""


def everywhere(tree: Node, kind) -> Iterator[Variant]:
    """The variants of every node of a tree, outermost first."""
    yield from kind(tree)
    for index, part in enumerate(tree.parts):
        for variant in everywhere(part, kind):
            yield Variant(variant.name, variant.says, tree.with_part(index, variant.tree), variant.mend)


def nodes_of(tree: Node) -> Iterator[Node]:
    """All nodes of a tree, outermost first, as `everywhere` visits them."""
    yield tree
    for part in tree.parts:
        yield from nodes_of(part)


def tensor(theirs: str, ours: str, value: np.ndarray) -> Node:
    """An array: how sentences and our code name it. Braces in names are doubled for str.format."""
    braces = str.maketrans({"{": "{{", "}": "}}"})
    return Node("tensor", theirs, theirs.translate(braces), ours.translate(braces), given=value)


def act(name: str, part: Node, formula: Callable | None = None, code: str | None = None) -> Node:
    if formula is None:
        formula, code = FORMULAS[name]
    return Node("act", name, f"{name}({{0}})", code.replace("{x}", "{0}"), formula, (part,))


def add(parts: Sequence[Node], factors: Sequence[float] | None = None, constant: float = 0.0) -> Node:
    factors = tuple(factors or [1.0] * len(parts))
    text = ""
    for index, factor in enumerate(factors):
        size = "" if abs(factor) == 1 else f"{number(abs(factor))} * "
        sign = (" - " if factor < 0 else " + ") if text else ("-" if factor < 0 else "")
        text += f"{sign}{size}{{{index}}}"
    if constant:
        text += f" {'-' if constant < 0 else '+'} {number(abs(constant))}"

    def total(*values):
        return sum((f * v for f, v in zip(factors, values, strict=True)), np.float64(constant))

    return Node("sum", number(constant), text, text, total, tuple(parts), factors=factors)


def concatenate(parts: Sequence[Node], axis: int) -> Node:
    inside = ", ".join(f"{{{index}}}" for index in range(len(parts)))
    ours = -1 if parts[0].value.ndim == 4 else axis
    code = f"jnp.concatenate([{inside}], axis={ours})"
    return Node("concatenate", str(axis), f"[{inside}]", code, lambda *v: np.concatenate(v, axis), tuple(parts))


def product(parts: Sequence[Node]) -> Node:
    text = " * ".join(f"{{{index}}}" for index in range(len(parts)))
    return Node("product", "", text, text, lambda *v: math.prod(v), tuple(parts))


MODULATIONS = {
    "(1 + scale) h + shift": lambda h, scale, shift: h * (1 + scale) + shift,
    "scale h + shift": lambda h, scale, shift: h * scale + shift,
    "(1 + scale) h": lambda h, scale, shift: h * (1 + scale),
    "(1 + scale) (h + shift)": lambda h, scale, shift: (h + shift) * (1 + scale),
    "h + shift": lambda h, scale, shift: h + shift,
}


def modulate(form: str, h: Node, scale: Node, shift: Node) -> Node:
    text = form.replace("scale", "{1}").replace("shift", "{2}").replace(") h", ") * {0}").replace("h +", "{0} +")
    text = text.replace(") (", ") * (").replace("{1} h", "{1} * {0}")
    return Node("modulate", form, text, text, MODULATIONS[form], (h, scale, shift))


def view(label: str, words: str, code: str, function: Callable, part: Node) -> Node:
    return Node("view", label, words, code, function, (part,))


def views(node: Node, shape: tuple[int, ...]) -> Iterator[Node]:
    """Ways to give an array the shape `shape` without arithmetic, the usual ones first."""
    x = node.value
    if x.shape == shape:
        yield node
    yield from broadcasts(node, shape)
    for part in parts(node, shape[1] if len(shape) == 4 else shape[-1]) if shape else ():
        if part.value.shape == shape:
            yield part
        yield from broadcasts(part, shape)
    yield from tokens(node, shape)
    yield from shuffled(node, shape)
    if x.ndim >= 3 and len(shape) == 2 and x.size == math.prod(shape) and x.shape[0] == shape[0]:
        yield from flattened(node)
    if x.ndim == 3 and len(shape) == 2 and (x.shape[0], x.shape[2]) == shape:
        yield view("first token", "{0}[:, 0]", "{0}[:, 0]", lambda v: v[:, 0], node)
        yield view("mean of tokens", "mean of {0}", "{0}.mean(1)", lambda v: v.mean(1), node)
        yield view("last token", "{0}[:, -1]", "{0}[:, -1]", lambda v: v[:, -1], node)
        for k in range(1, min(x.shape[1] - 1, 9)):
            yield view(f"token {k}", f"{{0}}[:, {k}]", f"{{0}}[:, {k}]", lambda v, k=k: v[:, k], node)
        yield view("maximum of tokens", "maximum of {0}", "{0}.max(1)", lambda v: v.max(1), node)
        without = "mean of {0} without its first token"
        yield view("mean without the first", without, "{0}[:, 1:].mean(1)", lambda v: v[:, 1:].mean(1), node)
    if x.ndim == 4 and len(shape) in (2, 4) and x.shape[:2] == shape[:2] and math.prod(shape[2:]) == 1:
        yield view("mean of pixels", "mean of {0}", "{0}.mean((1, 2))", lambda v: v.mean((2, 3)).reshape(shape), node)
        yield view(
            "maximum of pixels", "maximum of {0}", "{0}.max((1, 2))", lambda v: v.max((2, 3)).reshape(shape), node
        )


def parts(node: Node, channels: int) -> Iterator[Node]:
    """Halves, thirds, and up to sixths, of an array's channels: each has so many."""
    x = node.value
    axis = 1 if x.ndim == 4 else x.ndim - 1
    count = x.shape[axis] // channels if x.ndim > 1 and channels else 0
    if not 2 <= count <= 6 or x.shape[axis] != count * channels:
        return
    for k in range(count):
        which = f"the {('first', 'second', 'third')[k]} {'half' if count == 2 else 'third'}" if count < 4 else ""
        words = f"{which or f'part {k + 1} of {count}'} of {{0}}"
        code = f"jnp.split({{0}}, {count}, axis=-1)[{k}]"
        yield view(f"part {k}", words, code, lambda v, k=k: np.split(v, count, axis)[k], node)


def broadcasts(node: Node, shape: tuple[int, ...]) -> Iterator[Node]:
    """(B, C) to (B, C, 1, 1) or (B, 1, C); parameters (N, C), (1, N, C), (C,)."""
    x = node.value
    if x.shape == shape or not x.ndim:
        return

    def to(label: str, words: str, code: str, middle: tuple[int, ...]) -> Node:
        return view(label, words, code, lambda v: np.broadcast_to(v.reshape(middle), shape), node)

    if x.ndim == 2 and len(shape) == 4 and x.shape == shape[:2]:
        yield to("to all pixels", "{0}", "{0}[:, None, None, :]", (*shape[:2], 1, 1))
    if x.ndim == 4 and len(shape) == 4 and x.shape[:2] == shape[:2] and x.shape[2:] == (1, 1):
        yield to("to all pixels", "{0}", "{0}", (*shape[:2], 1, 1))
    if x.ndim == 4 and len(shape) == 4 and x.shape[0] == 1 and x.shape[1:] in (shape[1:], (shape[1], 1, 1)):
        yield to("to all images", "{0}", "{0}", x.shape)
    if x.ndim in (2, 3) and len(shape) == 3 and x.size == shape[0] * shape[2] and x.shape[0] == shape[0]:
        yield to("to all tokens", "{0}", "{0}[:, None, :]", (shape[0], 1, shape[2]))
    if x.ndim in (2, 3) and len(shape) == 3 and x.shape[-2:] == shape[1:] and x.size == shape[1] * shape[2]:
        yield to("to all images", "{0}", "{0}", (1, *shape[1:]))
    if x.size == x.shape[-1] == (shape[1] if len(shape) == 4 else shape[-1]) and len(shape) > 1:
        yield to("to all positions", "{0}", "{0}", (1, -1, 1, 1) if len(shape) == 4 else (-1,))
    elif x.size == x.shape[-1] == shape[-1] and len(shape) == 4:  # images (B, H, W, C) in theirs, too
        yield to("to all positions", "{0}", "{0}", (-1,))


def tokens(node: Node, shape: tuple[int, ...]) -> Iterator[Node]:
    """Images (B, C, H, W) to tokens (B, N, C) and back."""
    x = node.value
    if x.ndim == 4 and len(shape) == 3 and x.shape[0] == shape[0] and x.size == math.prod(shape):
        b, c, h, w = x.shape
        if shape[2] == c:
            rows = view(
                "tokens by rows", "{0} as tokens", "{0}.reshape(B, H * W, C)", lambda v: v.reshape(b, c, -1).mT, node
            )
            yield rows
            words = "{0} as tokens, column by column"
            code = "{0}.swapaxes(1, 2).reshape(B, H * W, C)"
            yield view("tokens by columns", words, code, lambda v: v.mT.reshape(b, c, -1).mT, node)
            words = "{0} reshaped from (B, C, H, W) to (B, N, C) without moving the channels"
            yield view("reshaped", words, "{0}.reshape(B, H * W, C)", lambda v: v.reshape(shape), node)
            words = "{0} in the order H, W, C, reshaped"
            yield view("reshaped", words, "{0}.reshape(...)", lambda v: v.transpose(0, 2, 3, 1).reshape(shape), node)
        if shape[1] == c:
            yield view("pixels last", "{0} as (B, C, N)", "{0}.reshape(B, N, C)", lambda v: v.reshape(shape), node)
    if x.ndim == 3 and len(shape) == 4 and x.shape[0] == shape[0] and x.size == math.prod(shape):
        b, c, h, w = shape
        if x.shape[2] == c:
            words, code = "{0} as an image", "{0}.reshape(B, H, W, C)"
            yield view("image by rows", words, code, lambda v: v.mT.reshape(shape), node)
            words, code = "{0} as an image, column by column", "{0}.reshape(B, W, H, C).swapaxes(1, 2)"
            yield view("image by columns", words, code, lambda v: v.mT.reshape(b, c, w, h).mT, node)
        words = "{0} reshaped to (B, C, H, W) without moving the channels"
        yield view("reshaped", words, "{0}.reshape(B, C, H, W)", lambda v: v.reshape(shape), node)
        words = "{0} reshaped to (B, H, W, C) without moving the channels"
        yield view("reshaped", words, "{0}.reshape(...)", lambda v: v.reshape(b, h, w, c).transpose(0, 3, 1, 2), node)
    if x.ndim == 3 and len(shape) == 3 and x.mT.shape == shape and x.shape != shape:
        yield view("transposed", "{0} transposed", "{0}.swapaxes(1, 2)", lambda v: v.mT, node)


def shuffled(node: Node, shape: tuple[int, ...]) -> Iterator[Node]:
    """Channels to pixels (B, C r r, H, W) -> (B, C, r H, r W) or back: C before or behind the pixels' numbers."""
    x = node.value
    if len(shape) != 4 or x.ndim != 4 or x.size != math.prod(shape) or x.shape[1] == shape[1]:
        return
    (b, many, h, w), (_, c, height, width) = sorted((x.shape, shape), key=lambda size: -size[1])
    r = height // h
    if many != c * r * r or (height, width) != (r * h, r * w):
        return
    if x.shape[1] == many:
        middle = ((b, c, r, r, h, w), (0, 1, 4, 2, 5, 3)), ((b, r, r, c, h, w), (0, 3, 4, 1, 5, 2))
        codes = (
            "{0}.reshape(B, H, W, C, r, r).transpose(0, 1, 4, 2, 5, 3).reshape(B, r * H, r * W, C)",
            "{0}.reshape(B, H, W, r, r, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, r * H, r * W, C)",
        )
    else:
        middle = ((b, c, h, r, w, r), (0, 1, 3, 5, 2, 4)), ((b, c, h, r, w, r), (0, 3, 5, 1, 2, 4))
        codes = (
            "{0}.reshape(B, H, r, W, r, C).transpose(0, 1, 3, 5, 2, 4).reshape(B, H, W, C * r * r)",
            "{0}.reshape(B, H, r, W, r, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, H, W, r * r * C)",
        )
    words = "{0} with channels as pixels" if x.shape[1] == many else "{0} with pixels as channels"
    for order, (size, axes), code in zip(("(C, r, r)", "(r, r, C)"), middle, codes, strict=True):

        def function(v: np.ndarray, size=size, axes=axes) -> np.ndarray:
            return v.reshape(size).transpose(axes).reshape(shape)

        yield view(f"pixel shuffle {order}", f"{words} in the order {order}", code, function, node)


def flattened(node: Node) -> Iterator[Node]:
    """(B, C, H, W) to (B, D), and (B, N, C) to (B, D), in every order."""
    x = node.value
    letters = "CHW" if x.ndim == 4 else "NC"
    orders = ((1, 2, 3), (2, 3, 1), (1, 3, 2), (3, 2, 1), (2, 1, 3), (3, 1, 2)) if x.ndim == 4 else ((1, 2), (2, 1))
    if x.ndim not in (3, 4):
        return
    for order in orders:
        name = ", ".join(letters[axis - 1] for axis in order)
        ours = {1: 3, 2: 1, 3: 2} if x.ndim == 4 else {1: 1, 2: 2}
        moved = tuple(ours[axis] for axis in order)
        code = f"{{0}}.transpose(0, {', '.join(map(str, moved))}).reshape(B, -1)"
        if moved == tuple(range(1, x.ndim)):
            code = "{0}.reshape(B, -1)"
        yield view(
            f"flattened {name}",
            f"{{0}} flattened in the order {name}",
            code,
            lambda v, order=order: v.transpose(0, *order).reshape(len(v), -1),
            node,
        )


def is_spread(node: Node) -> bool:
    """Whether a term is a vector that is added to all pixels or tokens, such as the time."""
    return node.op == "view" and node.label.startswith("to all")
