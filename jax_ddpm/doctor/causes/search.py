"""Find the expression over given arrays that equals a given array.

Expressions are compared at some positions first, and a pair or a triple of terms by a sorted list of random
projections, so that thousands of them cost little.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jax_ddpm.doctor.causes import activation, resampling
from jax_ddpm.doctor.causes import attention as attention_form
from jax_ddpm.doctor.causes.activation import FORMULAS
from jax_ddpm.doctor.causes.attention_nodes import as_tokens, attend, projections
from jax_ddpm.doctor.causes.expression import Node, act, add, concatenate, modulate, product, views
from jax_ddpm.doctor.causes.hypothesis import rounded
from jax_ddpm.doctor.records import relative_error

COMMON = ("SiLU", "ReLU", "GELU (erf)", "GELU (tanh)", "Mish", "tanh", "sigmoid", "leaky ReLU, slope 0.01", "ELU")
POSITIONS = 96
RECENT = 8
"""How many of the newest arrays are tried where all would take long."""


class Search:
    """An array, and the arrays that it may be made of, newest first. parts: whether halves, thirds, ... count, too."""

    def __init__(self, target: np.ndarray, materials: Sequence[Node], tolerance: float = 1e-9, parts: bool = True):
        self.target, self.tolerance = target, tolerance
        self.materials = materials
        generator = np.random.default_rng(0)
        self.at = generator.choice(target.size, min(POSITIONS, target.size), replace=False)
        self.direction = generator.normal(size=len(self.at))
        self.wanted = target.ravel()[self.at]
        self.size = max(np.abs(target).max(initial=0), 1e-30)
        self.atoms: list[Node] = []
        rows = []
        for node in materials:
            for atom in views(node, target.shape):
                if is_part(atom) and not parts:
                    continue
                row = atom.value.ravel()[self.at]
                if not any(np.array_equal(row, other) for other in rows) and np.isfinite(row).all():
                    rows.append(row)
                    self.atoms.append(atom)
        self.rows = np.array(rows).reshape(len(rows), len(self.at))

    def is_near(self, row: np.ndarray) -> bool:
        return bool(np.abs(row - self.wanted).max(initial=0) <= self.tolerance * self.size)

    def equals(self, node: Node) -> bool:
        return relative_error(node.value, self.target) <= self.tolerance

    def first(self, nodes: Iterator[Node]) -> Node | None:
        return next((node for node in nodes if self.equals(node)), None)

    def find(self, depth: int = 2, quick: bool = False) -> Node | None:
        """The simplest expression, or None. quick: only plain arrays, activations, sums and other sizes."""
        steps = [self.single, self.activated, self.sums, self.linear, self.triples, self.attention, self.resampled]
        steps += [self.products, self.activated_products]
        if quick:
            steps = [self.single, self.activated, self.sums, self.resampled]
        if depth:
            steps.insert(4, lambda: self.concatenations(depth))
            steps += [lambda: self.concatenations_plus(depth), self.unflattened]
        if not self.target.any():
            return None
        for step in steps:
            found = self.first(step())
            if found is not None:
                return found
        return None

    def single(self) -> Iterator[Node]:
        yield from (atom for atom, row in zip(self.atoms, self.rows, strict=True) if self.is_near(row))

    def activated(self) -> Iterator[Node]:
        for name, (formula, _) in FORMULAS.items():
            near = np.abs(formula(self.rows) - self.wanted).max(1, initial=0) <= self.tolerance * self.size
            yield from (act(name, self.atoms[index]) for index in np.flatnonzero(near))
        for atom, row in zip(self.atoms[:RECENT], self.rows, strict=False):
            found = activation.read_off(row, self.wanted)
            if found is not None:
                yield act(found[0], atom, found[2], found[1])

    def terms(self) -> tuple[list[tuple[str, int]], np.ndarray]:
        """(activation or "", number of an atom) and their rows."""
        names = ["", *COMMON]
        rows = [self.rows if not name else FORMULAS[name][0](self.rows) for name in names]
        return [(name, index) for name in names for index in range(len(self.atoms))], np.concatenate(rows)

    def term(self, name: str, index: int) -> Node:
        return act(name, self.atoms[index]) if name else self.atoms[index]

    def sums(self) -> Iterator[Node]:
        """a + b, act(a) + b, act(a) + act(b), act(a + b), a - b."""
        if not len(self.rows):
            return
        terms, rows = self.terms()
        for i, j in pairs_that_give(rows, rows, self.wanted, self.direction, self.tolerance * self.size):
            if i < j:
                yield add([self.term(*terms[i]), self.term(*terms[j])])
        n = len(self.atoms)
        firsts, seconds = np.triu_indices(n, 1)
        totals = self.rows[firsts] + self.rows[seconds]
        for name in COMMON:
            near = np.abs(FORMULAS[name][0](totals) - self.wanted).max(1, initial=0) <= self.tolerance * self.size
            for k in np.flatnonzero(near):
                yield act(name, add([self.atoms[firsts[k]], self.atoms[seconds[k]]]))
        for i, j in pairs_that_give(self.rows, -self.rows, self.wanted, self.direction, self.tolerance * self.size):
            yield add([self.atoms[i], self.atoms[j]], [1, -1])

    def linear(self) -> Iterator[Node]:
        """c a, c a + d, c a + d b, for the newest arrays."""
        count = min(len(self.atoms), 4 * RECENT)
        ones = np.ones(len(self.at))
        for i in range(count):
            for second in (None, ones):
                yield from self.with_factors([i], second)
        for i, j in itertools.combinations(range(count), 2):
            yield from self.with_factors([i, j], None)

    def with_factors(self, indices: list[int], ones: np.ndarray | None) -> Iterator[Node]:
        columns = [self.rows[i] for i in indices] + ([] if ones is None else [ones])
        if len(self.at) <= len(columns):
            return
        matrix = np.stack(columns, axis=1)
        factors, _, rank, _ = np.linalg.lstsq(matrix, self.wanted, rcond=1e-12)
        if rank < len(columns) or not self.is_near(matrix @ factors) or np.abs(factors).min() < 1e-9:
            return
        short = []
        for k, factor in enumerate(factors):

            def fits(value: float, k=k) -> bool:
                tried = factors.copy()
                tried[k] = value
                return bool(np.abs(matrix @ tried - self.wanted).max() <= self.tolerance * self.size / 10)

            short.append(rounded(float(factor), fits) or float(factor))
        constant = 0.0 if ones is None else short.pop()
        yield add([self.atoms[i] for i in indices], short, constant)

    def triples(self) -> Iterator[Node]:
        """a + b + c of plain arrays, act(a) + b + c and act(a + b) + c."""
        n = min(len(self.atoms), 4 * RECENT)
        if n < 3:
            return
        firsts, seconds = np.triu_indices(n, 1)
        totals = self.rows[firsts] + self.rows[seconds]
        terms, rows = self.terms()
        limit = self.tolerance * self.size
        for k, j in pairs_that_give(totals, rows, self.wanted, self.direction, limit):
            if terms[j][0] or terms[j][1] > seconds[k]:
                yield add([self.atoms[firsts[k]], self.atoms[seconds[k]], self.term(*terms[j])])
        for name in COMMON:
            inner = FORMULAS[name][0](totals)
            for k, j in pairs_that_give(inner, self.rows, self.wanted, self.direction, limit):
                yield add([act(name, add([self.atoms[firsts[k]], self.atoms[seconds[k]]])), self.atoms[j]])

    def resampled(self) -> Iterator[Node]:
        """Another size of one of the newest arrays, of a sum of two, or of an activation of these; then of that an
        activation, or the sum with one array."""
        if self.target.ndim != 4:
            return
        sources = [m for m in self.materials if m.value.ndim == 4 and m.value.shape[:2] == self.target.shape[:2]]
        sources = [m for m in sources if m.value.shape[2:] != self.target.shape[2:]][:RECENT]
        for size in dict.fromkeys(source.value.shape[2:] for source in sources):
            same = [source for source in sources if source.value.shape[2:] == size]
            plain = [*same, *(add(list(two)) for two in itertools.combinations(same, 2))]
            yield from self.resampled_from(plain, size)

    def resampled_from(self, plain: list[Node], size: tuple[int, int]) -> Iterator[Node]:
        """`resampled` of arrays of one size. A corner of their pixels is tried first, of all arrays at once."""
        inner = [*plain, *(act(name, node) for name in COMMON for node in plain)]
        corner = slice(0, 1), slice(0, 2)
        stacked = np.concatenate([node.value[corner] for node in inner])
        hits = []
        for order, found in enumerate(resampling.methods(size, self.target.shape[2:])):
            hits += [(k, order, found) for k in self.near_corner(attempted(found[2], stacked))]
        hits.sort(key=lambda hit: hit[:2])
        yield from (resample(inner[k], found) for k, _, found in hits)
        for found in usual_resampling(size, self.target.shape[2:]):
            values = attempted(found[2], stacked[: len(plain)])
            if values is None or values.shape[2:] != self.target.shape[2:]:
                continue
            for name in COMMON:
                yield from (act(name, resample(plain[k], found)) for k in self.near_corner(FORMULAS[name][0](values)))
            for atom in self.atoms[:RECENT]:
                near = self.near_corner(values + atom.value[corner])
                yield from (add([resample(plain[k], found), atom]) for k in near)

    def near_corner(self, values: np.ndarray | None) -> np.ndarray:
        """Numbers of the images (N, 2, H, W) that equal the target's first image in its first two channels."""
        target = self.target[:1, :2]
        if values is None or values.shape[1:] != target.shape[1:]:
            return np.array([], int)
        return np.flatnonzero(np.abs(values - target).max((1, 2, 3)) <= self.tolerance * self.size)

    def concatenations(self, depth: int) -> Iterator[Node]:
        """[a, b] along the channels or the tokens, where a and b are expressions themselves."""
        shape = self.target.shape
        for axis in [1] if len(shape) in (2, 4) else [2, 1]:
            lengths = {m.value.shape[axis] for m in self.materials if m.value.ndim == len(shape)}
            lengths |= {m.value.shape[-1] for m in self.materials if m.value.ndim > 1} if len(shape) == 3 else set()
            lengths |= {1} if len(shape) == 3 and axis == 1 else set()
            for length in sorted(n for n in lengths if n < shape[axis]):
                head, tail = np.split(self.target, [length], axis)
                first = self.of_part(head).find(0, quick=True)
                second = None if first is None else self.of_part(tail).find(depth - 1)
                if second is None:
                    continue
                same = second.op == "concatenate" and second.label == str(axis)
                yield concatenate([first, *(second.parts if same else [second])], axis)

    def of_part(self, target: np.ndarray) -> "Search":
        """A search for a part of a concatenation. Whole arrays are concatenated, not their halves."""
        return Search(target, self.materials, self.tolerance, parts=False)

    def concatenations_plus(self, depth: int) -> Iterator[Node]:
        """[a, b] + c, such as tokens with their positions."""
        for atom in self.atoms[: 4 * RECENT]:
            rest = Search(self.target - atom.value, self.materials, self.tolerance)
            found = rest.first(rest.concatenations(depth - 1))
            if found is not None:
                yield add([found, atom])

    def unflattened(self) -> Iterator[Node]:
        """Vectors (B, D) as flattened images that are an expression themselves, such as a pooled image."""
        if self.target.ndim != 2:
            return
        b, size = self.target.shape
        seen = set()
        for source in self.materials[: 2 * RECENT]:
            if source.value.ndim != 4 or source.value.shape[0] != b or size % source.value.shape[1]:
                continue
            _, c, h, w = source.value.shape
            side = math.isqrt(size // c * h // w)
            if not side or size // c % side or (c, side) in seen:
                continue
            seen.add((c, side))
            width = size // c // side
            for shape, order in (((c, side, width), (0, 1, 2, 3)), ((side, width, c), (0, 3, 1, 2))):
                image = self.target.reshape(b, *shape).transpose(order)
                found = Search(image, self.materials, self.tolerance).find(0)
                if found is not None:
                    yield from views(found, self.target.shape)

    def attention(self) -> Iterator[Node]:
        """Attention of three equal arrays, or of one that is packed, among the newest."""
        shape = self.target.shape
        if self.target.ndim not in (3, 4) or self.target.size > 2**22:
            return
        b, c, n, to_tokens, _ = as_tokens(shape)
        for packed, is_packed, lengths in projections(self.materials[: 2 * RECENT], b, n, c):
            settings = is_packed, self.tolerance * 10, lengths
            form = attention_form.read_off(packed.value, to_tokens(self.target), None, *settings)
            if form is not None:
                yield attend(packed, form, shape, is_packed)

    def products(self) -> Iterator[Node]:
        """a b, a act(b), a + b c, and scale and shift from the halves of an array."""
        yield from self.modulated()
        n = min(len(self.atoms), 4 * RECENT)
        limit = self.tolerance * self.size
        terms, rows = self.terms()
        for i in range(n):
            near = np.abs(self.rows[i] * rows - self.wanted).max(1, initial=0) <= limit
            yield from (product([self.atoms[i], self.term(*terms[j])]) for j in np.flatnonzero(near))
        firsts, seconds = np.triu_indices(n, 1)
        products = self.rows[firsts] * self.rows[seconds]
        for k, j in pairs_that_give(products, self.rows, self.wanted, self.direction, limit):
            yield add([self.atoms[j], product([self.atoms[firsts[k]], self.atoms[seconds[k]]])])

    def modulated(self) -> Iterator[Node]:
        """(1 + scale) h + shift, where scale and shift are vectors for all pixels or tokens, or parts of arrays."""
        nodes, rows = self.modulations()
        near = np.abs(rows - self.wanted).max(1, initial=0) <= self.tolerance * self.size
        yield from (modulate(*nodes(k)) for k in np.flatnonzero(near))

    def activated_products(self) -> Iterator[Node]:
        """An activation of `modulated`."""
        nodes, rows = self.modulations()
        for name in COMMON[:5]:
            near = np.abs(FORMULAS[name][0](rows) - self.wanted).max(1, initial=0) <= self.tolerance * self.size
            yield from (act(name, modulate(*nodes(k))) for k in np.flatnonzero(near))

    def modulations(self):
        """(function from a number to the arguments of `modulate`, rows of all of them)."""
        vectors = [k for k, atom in enumerate(self.atoms) if atom.label.startswith(("to all", "part "))][: 3 * RECENT]
        pairs = list(itertools.permutations(vectors, 2))
        forms = {"(1 + scale) h + shift": 1.0, "scale h + shift": 0.0}
        choices = list(itertools.product(forms, range(min(len(self.atoms), 2 * RECENT)), pairs))

        def nodes(k: int):
            form, h, (scale, shift) = choices[k]
            return form, self.atoms[h], self.atoms[scale], self.atoms[shift]

        if not choices:
            return nodes, np.empty((0, len(self.at)))
        ones = np.array([forms[form] for form, _, _ in choices])[:, None]
        h, scale, shift = (np.array(numbers) for numbers in zip(*[(h, *pair) for _, h, pair in choices], strict=True))
        return nodes, self.rows[h] * (ones + self.rows[scale]) + self.rows[shift]


def is_part(node: Node) -> bool:
    """Whether a view of an array is one of a half, a third, ... of it."""
    return node.op == "view" and (node.label.startswith("part ") or is_part(node.parts[0]))


def attempted(function: Callable, x: np.ndarray) -> np.ndarray | None:
    """The function's value, or None if it does not take this size."""
    try:
        return function(x)
    except (ValueError, RuntimeError):
        return None


def pairs_that_give(a: np.ndarray, b: np.ndarray, wanted, direction, limit: float) -> Iterator[tuple[int, int]]:
    """Numbers (i, j) of rows with a[i] + b[j] = wanted."""
    if not len(a) or not len(b):
        return
    keys = b @ direction
    order = np.argsort(keys)
    missing = wanted @ direction - a @ direction
    reach = limit * np.abs(direction).sum() + 1e-300
    low = np.searchsorted(keys[order], missing - reach)
    high = np.searchsorted(keys[order], missing + reach, side="right")
    for i in np.flatnonzero(high > low):
        for j in order[low[i] : high[i]]:
            if np.abs(a[i] + b[j] - wanted).max() <= limit:
                yield int(i), int(j)


def resample(node: Node, found: tuple) -> Node:
    return Node(
        "resample", found[1], f"{{0}} resampled ({found[1]})", f"resample({{0}}, {found[1]})", found[2], (node,)
    )


def usual_resampling(size: tuple[int, int], target: tuple[int, int]) -> Iterator[tuple]:
    """The methods that are tried inside other operations."""
    usual = (
        resampling.nearest(size, target),
        "bilinear, half-pixel centres",
        "bilinear, align_corners",
        "area",
        "maximum 2x2, stride 2, padding 0",
    )
    for found in resampling.methods(size, target):
        if found[1] in usual:
            yield found
