"""Time embeddings and tables: order of sines and cosines, frequencies, scale and offset of t; rows of a table."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis, number, rounded
from jax_ddpm.doctor.records import Finding, relative_error

ORDERS = {
    "sines, then cosines": "jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)",
    "cosines, then sines": "jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)",
    "sines and cosines in turns": "jnp.stack([jnp.sin(phase), jnp.cos(phase)], axis=-1).reshape(len(t), -1)",
    "cosines and sines in turns": "jnp.stack([jnp.cos(phase), jnp.sin(phase)], axis=-1).reshape(len(t), -1)",
}


@dataclass(frozen=True)
class Sinusoid:
    """phase = scale (t + offset) period^(-factor i / (half - shift))."""

    order: str = "sines, then cosines"
    shift: int = 0
    factor: float = 1.0
    offset: float = 0.0
    scale: float = 1.0
    period: float = 1e4

    def apply(self, t: np.ndarray, width: int) -> np.ndarray:
        half = width // 2
        exponent = self.factor * np.arange(half) / max(half - self.shift, 1)
        phase = self.scale * (t[:, None] + self.offset) * self.period**-exponent
        return arranged(np.sin(phase), np.cos(phase), self.order)


def arranged(sines: np.ndarray, cosines: np.ndarray, order: str) -> np.ndarray:
    if order.endswith("in turns"):
        parts = [sines, cosines] if order.startswith("sines") else [cosines, sines]
        return np.stack(parts, axis=-1).reshape(len(sines), -1)
    return np.concatenate([sines, cosines] if order.startswith("sines") else [cosines, sines], axis=-1)


def taken_apart(y: np.ndarray, order: str) -> tuple[np.ndarray, np.ndarray]:
    """(sines, cosines) of an embedding."""
    half = y.shape[1] // 2
    first, second = (y[:, 0::2], y[:, 1::2]) if order.endswith("in turns") else (y[:, :half], y[:, half:])
    return (first, second) if order.startswith("sines") else (second, first)


def is_sinusoid(y: np.ndarray) -> bool:
    """Whether an array (B, D) is made of pairs sin and cos in one of ORDERS."""
    if y.ndim != 2 or y.shape[1] < 4 or y.shape[1] % 2 or np.abs(y).max(initial=0) > 1 + 1e-6:
        return False
    return any(np.allclose(s**2 + c**2, 1, atol=1e-5) for s, c in (taken_apart(y, order) for order in ORDERS))


def read_off(t: np.ndarray, y: np.ndarray, start: Sinusoid | None = None) -> Sinusoid | None:
    """The formula that gives y (B, D) from t (B,), the nearest to `start` first; None if none does.

    The period, and for the scale what the first column shows, are solved for. Rounding of float32 phases remains.
    """
    start = start or Sinusoid()
    options = {
        "order": list(ORDERS),
        "shift": [0, 1],
        "factor": [1.0, 2.0],
        "offset": [0.0, 1.0, -1.0],
        "scale": [1.0, 1000.0, 1e-3, 1 / 999, 2 * math.pi, 1000 * 2 * math.pi, 0.5, 2.0, 100.0],
    }
    allowed = 1e-7 * max(np.abs(t).max(initial=1.0), 1.0) + 1e-9
    combinations = []
    for values in itertools.product(*options.values()):
        form = replace(start, **dict(zip(options, values, strict=True)))
        changes = sum(getattr(form, name) != getattr(start, name) for name in options)
        combinations.append((changes, form))
    combinations.sort(key=lambda pair: pair[0])
    for changes, form in combinations:
        if changes <= 3 and is_close(form, t, y, allowed):
            return form
    for solve in (with_period, with_scale):
        for changes, form in combinations:
            solved = solve(form, t, y, allowed) if changes <= 1 else None
            if solved is not None:
                return solved
    return None


def is_close(form: Sinusoid, t: np.ndarray, y: np.ndarray, allowed: float) -> bool:
    return relative_error(form.apply(t, y.shape[1]), y) < min(allowed, 1e-3)


def with_period(form: Sinusoid, t, y, allowed: float) -> Sinusoid | None:
    """The period from the lowest frequency at the smallest t, whose phase is below pi."""
    half = y.shape[1] // 2
    at, phase = smallest_phase(form, t, y)
    moment = form.scale * (t[at] + form.offset)
    exponent = form.factor * (half - 1) / max(half - form.shift, 1)
    if phase <= 0 or moment <= 0 or exponent <= 0:
        return None
    period = rounded((moment / phase) ** (1 / exponent), lambda p: is_close(replace(form, period=p), t, y, allowed))
    return None if period is None else replace(form, period=period)


def smallest_phase(form: Sinusoid, t: np.ndarray, y: np.ndarray) -> tuple[int, float]:
    """(number of the smallest t above 0, its phase at the lowest frequency)."""
    sines, cosines = taken_apart(y, form.order)
    moments = t + form.offset
    at = int(np.argmin(np.where(moments > 0, moments, np.inf)))
    return at, math.atan2(sines[at, -1], cosines[at, -1])


def with_scale(form: Sinusoid, t, y, allowed: float) -> Sinusoid | None:
    """The scale of t from the lowest frequency at the smallest t."""
    half = y.shape[1] // 2
    at, phase = smallest_phase(form, t, y)
    unscaled = (t[at] + form.offset) * form.period ** (-form.factor * (half - 1) / max(half - form.shift, 1))
    if unscaled == 0:
        return None
    scale = rounded(phase / unscaled, lambda s: is_close(replace(form, scale=s), t, y, allowed))
    return None if scale is None else replace(form, scale=scale)


PHRASES = {
    "order": ("embedding_order", "{0}"),
    "shift": ("frequency_exponent", "frequencies with the exponents i / ({0})"),
    "factor": ("frequency_exponent", "exponents multiplied by {0:g}"),
    "offset": ("time_offset", "{0}"),
    "scale": ("time_scale", "{0}"),
    "period": ("max_period", "longest period {0:.6g}"),
}


def said(form: Sinusoid, name: str) -> str:
    """The phrase of one setting."""
    value = getattr(form, name)
    if name == "shift":
        value = f"D/2 - {value}" if value else "D/2"
    elif name == "offset":
        value = f"t {'+' if value > 0 else '-'} {number(abs(value))}" if value else "t"
    elif name == "scale":
        value = "t" if value == 1 else f"t times {number(value)}"
    return PHRASES[name][1].format(value)


def written(form: Sinusoid) -> str:
    """The form in our code."""
    factor = "" if form.factor == 1 else f"{number(form.factor)} * "
    half = f"(D // 2 - {form.shift})" if form.shift else "(D // 2)"
    t = f"(t + {number(form.offset)})" if form.offset else "t"
    scale = "" if form.scale == 1 else f"{number(form.scale)} * "
    phase = f"{scale}{t}[:, None] * {number(form.period)} ** (-{factor}jnp.arange(D // 2) / {half})"
    return f"phase = {phase}; {ORDERS[form.order]}"


def hypotheses(finding: Finding, times: list[np.ndarray]) -> Iterator[Hypothesis]:
    """Both arrays are embeddings of one of `times`, arrays (B,)."""
    theirs, ours = finding.values
    if not is_sinusoid(theirs) or not is_sinusoid(ours):
        return
    for t in times:
        t = np.asarray(t, np.float64).ravel()
        if len(t) != len(theirs):
            continue
        their_form = read_off(t, theirs)
        our_form = None if their_form is None or len(ours) != len(t) else read_off(t, ours, their_form)
        if our_form is None or our_form == their_form:
            continue
        differ = [f.name for f in fields(Sinusoid) if getattr(their_form, f.name) != getattr(our_form, f.name)]
        says = []
        for name in differ:
            mine, yours = (said(form, name) for form in (our_form, their_form))
            says.append(f"{mine} in ours; {yours} in theirs")
        yield Hypothesis(
            PHRASES[differ[0]][0],
            f"the time embedding has {'; '.join(says)}",
            f"Write {written(their_form)}.",
            lambda *_, t=t, our_form=our_form: our_form.apply(t, ours.shape[1]),
            largest=1e-3,
            remainder=0.01,
        )
        return


def of_table(finding: Finding) -> Iterator[Hypothesis]:
    """For an nn.Embedding: rows beside the right one, a factor."""
    table = finding.pair.theirs.parameters.get("weight")
    index = finding.their_input
    if "Embedding" not in finding.pair.theirs.kind or table is None or table.ndim != 2:
        return
    index = np.asarray(index).astype(np.int64)
    for offset in (1, -1):
        for how, clip in (("the last row beyond the end", np.clip), ("row 0 beyond the end", wrapped)):
            yield Hypothesis(
                "embedding_row",
                f"ours reads row t {'+' if offset > 0 else '-'} 1, theirs row t ({how})",
                "Index the table with t itself.",
                lambda *_, offset=offset, clip=clip: table[clip(index + offset, 0, len(table) - 1)],
            )
    columns = table.shape[1]
    for factor in (math.sqrt(columns), 1 / math.sqrt(columns)):
        yield Hypothesis(
            "embedding_scale",
            f"ours multiplies the rows by {number(factor)}, theirs does not",
            "Remove the factor.",
            lambda *_, factor=factor: factor * table[np.clip(index, 0, len(table) - 1)],
        )


def wrapped(index: np.ndarray, low: int, high: int) -> np.ndarray:
    return index % (high + 1)


def of_module(finding: Finding) -> Iterator[Hypothesis]:
    """For a module that makes the embedding from t."""
    yield from hypotheses(finding, list(finding.their_inputs))
