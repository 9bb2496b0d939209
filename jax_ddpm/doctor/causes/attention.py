"""Attention as a formula: heads, their split, order of query, key and value, scale, softmax axis, merging of heads.

The form of both sides is found from their numbers: first theirs, then the nearest form that gives ours.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import divisors, number, rounded
from jax_ddpm.doctor.records import relative_error

ORDERS = tuple("".join(order) for order in itertools.permutations("qkv"))
PACKINGS = {
    "(3, heads, d)": ("p", "h", "d"),
    "(heads, 3, d)": ("h", "p", "d"),
    "(heads, d, 3)": ("h", "d", "p"),
    "(3, d, heads)": ("p", "d", "h"),
    "(d, 3, heads)": ("d", "p", "h"),
    "(d, heads, 3)": ("d", "h", "p"),
}
"""Layouts of the channels of a projection that gives query, key and value at once."""
JOINED = {
    "(heads, d)": "(B, N, heads, d)",
    "(d, heads)": "(B, N, d, heads)",
    "(heads, positions, d)": "(B, heads, N, d)",
}
"""Axes of the array before the reshape that joins the heads, by `Form.merge`."""
AXES = {"keys": -1, "queries": -2, "heads": 1}


@dataclass(frozen=True)
class Form:
    """How attention is computed from projections."""

    heads: int = 1
    order: str = "qkv"
    packing: str = "(3, heads, d)"
    scale: float | None = None
    """None: 1 / sqrt(d), with d channels a head."""
    axis: str = "keys"
    merge: str = "(heads, d)"
    """Order of the output's channels, or "(heads, positions, d)": heads not moved back before the reshape."""
    transposed: bool = False
    """Whether the weights are transposed before they multiply the values."""
    causal: bool = False
    lengths: tuple[int, int] | None = None
    """Numbers of queries and of keys, where they differ. The shorter ones are padded in the packed projections."""

    def scale_for(self, width: int) -> float:
        return 1 / math.sqrt(width // self.heads) if self.scale is None else self.scale

    def apply(self, packed: np.ndarray) -> np.ndarray:
        """Packed projections (B, N, 3C) -> (B, N, C), or (B, number of queries, C)."""
        b, n, width = packed.shape
        c = width // 3
        sizes = {"p": 3, "h": self.heads, "d": c // self.heads}
        axes = PACKINGS[self.packing]
        parts = packed.reshape(b, n, *(sizes[a] for a in axes))
        parts = parts.transpose(2 + axes.index("p"), 0, 2 + axes.index("h"), 1, 2 + axes.index("d"))
        query, key, value = (parts[self.order.index(letter)] for letter in "qkv")  # (B, heads, N, d)
        n, keys = self.lengths or (n, n)
        query, key, value = query[:, :, :n], key[:, :, :keys], value[:, :, :keys]
        scores = query @ key.swapaxes(-1, -2) * self.scale_for(c)
        if self.causal:
            scores = np.where(np.tril(np.ones((n, keys), bool)), scores, -np.inf)
        scores = scores - scores.max(AXES[self.axis], keepdims=True)
        with np.errstate(all="ignore"):
            weights = np.exp(scores)
            weights = weights / weights.sum(AXES[self.axis], keepdims=True)
        heads = (weights.swapaxes(-1, -2) if self.transposed else weights) @ value
        if self.merge == "(heads, positions, d)":
            return heads.reshape(b, n, c)
        return heads.transpose((0, 2, 1, 3) if self.merge == "(heads, d)" else (0, 2, 3, 1)).reshape(b, n, c)


NAMES = {
    "scale": "attention_scale",
    "axis": "softmax_axis",
    "order": "qkv_order",
    "packing": "qkv_packing",
    "heads": "attention_heads",
    "merge": "heads_merge",
    "transposed": "attention_transposed",
    "causal": "attention_mask",
}


def scales(heads: int, c: int, n: int) -> list[float]:
    d = c // heads
    return [c**-0.5, 1.0, 1 / d, d**-0.25, 1 / c, d**0.5, n**-0.5, c**-0.25]


def near(start: Form, c: int, n: int, packed: bool) -> Iterator[Form]:
    """Forms by the number of fields that differ from `start`."""
    layouts = list(PACKINGS) if packed else ["(3, heads, d)", "(3, d, heads)"]
    options = {
        "scale": [None, *scales(start.heads, c, n)],
        "order": ORDERS,
        "packing": layouts,
        "axis": list(AXES),
        "merge": ["(heads, d)", "(d, heads)", "(heads, positions, d)"],
        "transposed": [False, True],
        "causal": [False, True],
        "heads": divisors(c),
    }
    changes = [{name: v} for name, values in options.items() for v in values if v != getattr(start, name)]
    yield start
    for change in changes:
        yield replace(start, **change)
    for one, two in itertools.combinations(changes, 2):
        if one.keys() != two.keys():
            yield replace(start, **one, **two)


def usual(c: int, packed: bool) -> Iterator[Form]:
    """What theirs may be: all heads, packings and orders with the usual scale."""
    layouts = list(PACKINGS) if packed else ["(3, heads, d)", "(3, d, heads)"]
    for packing, order, heads in itertools.product(layouts, ORDERS, divisors(c)):
        yield Form(
            heads, order, packing, merge="(d, heads)" if not packed and packing == "(3, d, heads)" else "(heads, d)"
        )
    for packing, heads in itertools.product(layouts, divisors(c)):
        yield Form(heads, "qkv", packing, merge="(d, heads)")
        for scale in (1.0, c**-0.5):
            yield Form(heads, "qkv", packing, scale)


def read_off(
    packed: np.ndarray,
    y: np.ndarray,
    start: Form | None,
    is_packed: bool,
    tolerance: float = 1e-9,
    lengths: tuple[int, int] | None = None,
) -> Form | None:
    """The Form that gives y (B, N, C) from packed (B, N, 3C), the nearest to `start` first, or None.

    lengths: without `start`, those of the form. With them, packed is (B, max(lengths), 3C).
    """
    b, n, c = y.shape
    lengths = lengths if start is None else start.lengths
    if packed.shape != (b, max(lengths or (n,)), 3 * c) or packed.shape[1] ** 2 * b * c > 2**27:
        return None
    first, y_first = packed[:1], y[:1]

    def fits(form: Form) -> bool:
        impossible = c % form.heads or (lengths is not None and form.transposed)
        if impossible or not close(form.apply(first), y_first):
            return False
        return close(form.apply(packed), y)

    def close(value: np.ndarray, wanted: np.ndarray) -> bool:
        return relative_error(value, wanted) < tolerance

    if start is None:
        forms = (replace(form, lengths=lengths) for form in usual(c, is_packed))
        return next((form for form in forms if fits(form)), None)
    found = next((form for form in near(start, c, n, is_packed) if fits(form)), None)
    return found or with_scale(start, first, y_first, c, fits)


def with_scale(start: Form, packed: np.ndarray, y: np.ndarray, c: int, fits: Callable) -> Form | None:
    """The scale that gives y, found by halving intervals around the best of a grid."""

    def error(log_scale: float) -> float:
        return relative_error(replace(start, scale=math.exp(log_scale)).apply(packed), y)

    grid = np.linspace(-7, 3, 101)
    best = grid[int(np.argmin([error(point) for point in grid]))]
    low, high = best - 0.1, best + 0.1
    for _ in range(80):
        third = (high - low) / 3
        if error(low + third) < error(high - third):
            high -= third
        else:
            low += third
    scale = rounded(math.exp((low + high) / 2), lambda s: fits(replace(start, scale=s)))
    return None if scale is None else replace(start, scale=scale)


def difference(theirs: Form, ours: Form, c: int) -> tuple[str, str, str]:
    """(name, says, mend) of two forms. c: channels of the output."""
    differ = [f.name for f in fields(Form) if getattr(theirs, f.name) != getattr(ours, f.name)]
    differ.sort(key=list(NAMES).index)
    says, mends = [], []
    for name in differ:
        mine, yours = getattr(ours, name), getattr(theirs, name)
        d = c // theirs.heads
        if name == "scale":
            mine, yours = with_root(ours.scale_for(c), c, ours.heads), with_root(theirs.scale_for(c), c, theirs.heads)
            says.append(f"the scores are multiplied by {mine} in ours and by {yours} in theirs")
            by_root = f"Divide query @ key by jnp.sqrt(d), where d is the number of channels of a head ({d})."
            mends.append(by_root if theirs.scale is None else f"Multiply query @ key by {yours}.")
        elif name == "axis":
            says.append(f"softmax runs over {mine} in ours and over {yours} in theirs")
            mends.append(f"Write jax.nn.softmax(scores, axis={AXES[yours]}) for scores (B, heads, queries, keys).")
        elif name == "order":
            says.append(f"the projections are {spelled(mine)} in ours and {spelled(yours)} in theirs")
            mends.append(f"Take them in the order {spelled(yours)}.")
        elif name == "packing":
            says.append(f"the projection's channels are split as {mine} in ours and as {yours} in theirs")
            mends.append(f"Write qkv.reshape(B, N, {yours.strip('()')}) with heads={theirs.heads}, d={d}.")
        elif name == "heads":
            says.append(f"ours has {mine} heads, theirs {yours}")
            mends.append(f"Write num_heads={yours}.")
        elif name == "merge":
            says.append(f"heads are joined in the order {mine} in ours and {yours} in theirs")
            mends.append(
                f"Before .reshape(B, N, C), ours has the axes {JOINED[mine]} and needs {JOINED[yours]}: "
                "a transpose is missing, or is one too many."
            )
        elif name == "transposed":
            says.append(f"the weights are {'' if mine else 'not '}transposed in ours")
            mends.append('Write einsum("bhqk,bkhd->bqhd", weights, value).')
        else:
            says.append(f"ours has {'a' if mine else 'no'} causal mask, theirs {'one' if yours else 'none'}")
            mends.append(f"Write is_causal={yours}.")
    return NAMES[differ[0]], "; ".join(says), " ".join(mends)


def with_root(scale: float, c: int, heads: int) -> str:
    """The scale, and the square root that it is of the channels of a head or of all heads."""
    root = next((d for d in (c // heads, c) if d > 1 and math.isclose(scale, d**-0.5, rel_tol=1e-6)), None)
    return number(scale) if root is None else f"{number(scale)} (1 / sqrt({root}))"


def spelled(order: str) -> str:
    return ", ".join({"q": "query", "k": "key", "v": "value"}[letter] for letter in order)
