"""Normalisation layers: what is averaged, epsilon, variance, affine.

The form of both layers is found from their numbers: first theirs, then the nearest form that gives ours. Epsilon is
solved for.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis, constructor, divisors, is_rounded_to, kinds, number, rounded
from jax_ddpm.doctor.records import LARGE_MEAN, Call, Finding, relative_error


@dataclass(frozen=True)
class Form:
    """How a layer normalises: (x - mean) / sqrt(variance + epsilon) * weight + bias, and its variants."""

    over: tuple
    """("groups", g), ("interleaved groups", g), ("groups of each pixel", g), ("last axes", n), ("batch",),
    ("running",)."""
    centred: bool = True
    """Whether the mean is subtracted."""
    unbiased: bool = False
    outside: bool = False
    """Whether epsilon is added to the standard deviation."""
    affine: str = "x w + b"
    epsilon: float = 0.0


PARAMETERS = {"weight": ("weight", "scale", "gamma", "g"), "bias": ("bias", "shift", "beta", "b")}
"""What a norm of somebody's own may call its parameters."""
LARGE = 2**18
"""Number of elements of an input beyond which only one change of the form is tried."""
AFFINES = {
    "x w + b": lambda w, b: (w, b),
    "x": lambda w, b: (np.ones_like(w), np.zeros_like(b)),
    "x w": lambda w, b: (w, np.zeros_like(b)),
    "x + b": lambda w, b: (np.ones_like(w), b),
    "(x + b) w": lambda w, b: (w, b * w),
    "x (1 + w) + b": lambda w, b: (1 + w, b),
    "x b + w": lambda w, b: (b, w),
}
NAMES = {
    "over": "axes",
    "centred": "mean_subtracted",
    "unbiased": "variance_biased",
    "outside": "epsilon_outside",
    "affine": "affine",
    "epsilon": "epsilon",
}


def parameter(call: Call, kind: str) -> np.ndarray | None:
    return next((call.parameters[name] for name in PARAMETERS[kind] if name in call.parameters), None)


class Layer:
    """Arrays of one normalisation: input, weight and bias broadcast to it, running statistics if it has them.

    channel: the axis of its weight, 1 or -1. Default: what its class and the shapes say.
    """

    def __init__(self, call: Call, x: np.ndarray, channel: int | None = None):
        self.x = x
        weight, bias = parameter(call, "weight"), parameter(call, "bias")
        self.channel = channel or (-1 if self.is_layer_norm(call, x) else 1)
        self.weight = np.ones_like(x) if weight is None else self.broadcast(weight)
        self.bias = np.zeros_like(x) if bias is None else self.broadcast(bias)
        self.running = None
        if "running_mean" in call.parameters and "running_var" in call.parameters:
            self.running = tuple(self.broadcast(call.parameters[k]) for k in ("running_mean", "running_var"))

    def is_layer_norm(self, call: Call, x: np.ndarray) -> bool:
        """Whether parameters belong to the last axes, not to axis 1."""
        weight = parameter(call, "weight")
        if weight is not None and weight.ndim == 1 and x.ndim > 2 and x.shape[1] != x.shape[-1]:
            return weight.shape[0] == x.shape[-1]
        if weight is not None and weight.ndim > 1:
            return True
        return any("LayerNorm" in kind or "RMSNorm" in kind for kind in kinds(call)) and "LayerNorm2d" not in kinds(
            call
        )

    def broadcast(self, parameter: np.ndarray) -> np.ndarray:
        if self.channel == 1 and parameter.ndim == 1:
            parameter = parameter.reshape(-1, *[1] * (self.x.ndim - 2))
        return np.broadcast_to(parameter, self.x.shape)

    def view(self, over: tuple) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(shape, axes): x reshaped to `shape` is averaged over `axes`."""
        b, c, *space = self.x.shape
        g = over[1] if len(over) > 1 else 1
        if over[0] == "groups":
            return (b, g, c // g, *space), tuple(range(2, self.x.ndim + 1))
        if over[0] == "interleaved groups":
            return (b, c // g, g, *space), (1, *range(3, self.x.ndim + 1))
        if over[0] == "groups of each pixel":
            return (b, g, c // g, *space), (2,)
        if over[0] == "last axes":
            return self.x.shape, tuple(range(self.x.ndim - g, self.x.ndim))
        return self.x.shape, (0, *range(2, self.x.ndim))

    def statistics(self, form: Form) -> tuple[np.ndarray, np.ndarray]:
        """x minus its mean, and the variance, in the view's shape."""
        shape, axes = self.view(form.over)
        if form.over[0] == "running":
            return self.x - self.running[0], self.running[1]
        x = self.x.reshape(shape)
        centred = x - x.mean(axes, keepdims=True) if form.centred else x
        variance = np.square(centred).mean(axes, keepdims=True)
        n = x.size // variance.size
        if form.unbiased:
            variance = variance * n / max(n - 1, 1)
        return centred, variance

    def apply(self, form: Form) -> np.ndarray:
        centred, variance = self.statistics(form)
        with np.errstate(all="ignore"):
            if form.outside:
                normal = centred / (np.sqrt(variance) + form.epsilon)
            else:
                normal = centred / np.sqrt(variance + form.epsilon)
        weight, bias = AFFINES[form.affine](self.weight, self.bias)
        return normal.reshape(self.x.shape) * weight + bias

    def slopes(self, form: Form, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By what each group of y is divided, and the group's variance."""
        shape, axes = self.view(form.over)
        centred, variance = self.statistics(form)
        weight, bias = AFFINES[form.affine](self.weight, self.bias)
        scaled, rest = centred * weight.reshape(shape), (y - bias).reshape(shape)
        with np.errstate(all="ignore"):
            divisor = np.square(scaled).sum(axes, keepdims=True) / (scaled * rest).sum(axes, keepdims=True)
        if form.over[0] == "running":
            variance = variance.mean(axes, keepdims=True)
        return divisor, variance

    def solved(self, form: Form, y: np.ndarray, near: float) -> Form | None:
        """The form with the epsilon that gives y, or None if none does. `near` is tried first."""
        divisor, variance = self.slopes(form, y)
        smallest = np.abs(divisor[np.isfinite(divisor)]).min(initial=np.inf)
        rounding = min(1e-15 * np.abs(self.x).max() / max(smallest, 1e-30), 1e-7)
        rounding += 2e-7 if is_rounded_to(y, np.float32) else 1e-11

        def fits(epsilon: float) -> bool:
            return relative_error(self.apply(replace(form, epsilon=epsilon)), y) < rounding

        if fits(near):
            return replace(form, epsilon=near)
        good = np.isfinite(divisor) & (divisor > 0) & (variance > 0)
        if not good.any():
            return None
        at = np.argmin(np.where(good, variance, np.inf))
        epsilon = (
            divisor.flat[at] - np.sqrt(variance.flat[at]) if form.outside else divisor.flat[at] ** 2 - variance.flat[at]
        )
        if not epsilon > -1e-12:
            return None
        short = rounded(max(float(epsilon), 0.0), fits)
        return None if short is None else replace(form, epsilon=short)


def structures(layer: Layer, first: tuple) -> list[tuple]:
    """What may be averaged, `first` first."""
    c = layer.x.shape[1]
    found = [first, ("groups", 1), ("last axes", 1)] + [("groups", g) for g in divisors(c)]
    found += [("interleaved groups", g) for g in divisors(c)[1:-1]]
    found += [("groups of each pixel", g) for g in divisors(c)[:-1]] if layer.x.ndim > 2 else []
    found += [("last axes", n) for n in range(1, layer.x.ndim)] + [("batch",)]
    found += [("running",)] if layer.running else []
    return list(dict.fromkeys(found))


def declared(call: Call, layer: Layer) -> Form:
    """The form that the settings of their layer say."""
    settings = call.settings
    names = kinds(call)
    if any("BatchNorm" in name for name in names):
        over = ("running",) if layer.running and not settings.get("training", False) else ("batch",)
    elif any("InstanceNorm" in name for name in names):
        over = ("groups", layer.x.shape[1])
    elif any("GroupNorm" in name for name in names):
        over = ("groups", settings.get("num_groups", 1))
    else:
        weight = parameter(call, "weight")
        shape = settings.get("normalized_shape") or (weight.shape if weight is not None else (0,))
        over = ("last axes", len(shape)) if layer.channel == -1 else ("groups of each pixel", 1)
    epsilon = next(
        (settings[k] for k in ("eps", "epsilon", "variance_epsilon") if isinstance(settings.get(k), float)), 1e-5
    )
    return Form(over, centred=not any("RMS" in name for name in names), epsilon=epsilon)


def forms(layer: Layer, start: Form) -> Iterator[Form]:
    """Forms by the number of fields that differ from `start`, epsilon apart: one, or two if arrays are small."""
    options = {
        "centred": [True, False],
        "unbiased": [False, True],
        "outside": [False, True],
        "affine": list(AFFINES),
        "over": structures(layer, start.over),
    }
    changes = [{name: v} for name, values in options.items() for v in values if v != getattr(start, name)]
    yield start
    for change in changes:
        yield replace(start, **change)
    for one, two in itertools.combinations(changes, 2) if layer.x.size <= LARGE else ():
        if one.keys() != two.keys():
            yield replace(start, **one, **two)


def find_form(layer: Layer, y: np.ndarray, start: Form) -> Form | None:
    return next((f for f in (layer.solved(form, y, start.epsilon) for form in forms(layer, start)) if f), None)


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    call, x = finding.pair.theirs, finding.their_input
    weight = parameter(call, "weight")
    is_norm = any("norm" in name.lower() for name in kinds(call))
    if not is_norm or x.ndim < 2 or finding.our_output.shape != x.shape or finding.their_output.shape != x.shape:
        return
    if weight is not None and weight.size > x[0].size:
        return
    layer = Layer(call, x)
    theirs = find_form(layer, finding.their_output, declared(call, layer))
    if theirs is None and weight is not None and weight.size == x.shape[1] == x.shape[-1]:
        layer = Layer(call, x, -layer.channel)  # of a class whose name does not tell
        theirs = find_form(layer, finding.their_output, declared(call, layer))
    if theirs is None:
        return
    ours = None if finding.probe == LARGE_MEAN else find_form(layer, finding.our_output, theirs)
    if ours is not None and ours != theirs:
        yield named(finding, layer, theirs, ours)
    else:
        yield from one_pass(finding, layer, theirs)


def named(finding: Finding, arrays: Layer, theirs: Form, ours: Form) -> Hypothesis:
    """The hypothesis that ours has the form `ours`, in words."""
    differ = [f.name for f in fields(Form) if getattr(theirs, f.name) != getattr(ours, f.name)]
    layer = constructor(finding.pair.ours)
    name = NAMES[differ[0]]
    if differ[0] == "over":
        kind, other = theirs.over[0], ours.over[0]
        name = {("groups", "groups"): "groups", ("groups", "interleaved groups"): "group_channels"}.get(
            (kind, other), name
        )
        if {kind, other} == {"running", "batch"}:
            name = "mode"
    phrases = {
        "over": lambda f: f"{'averages over' if f.over[0] != 'running' else 'uses'} {averaged(f.over)}",
        "centred": lambda f: "subtracts the mean" if f.centred else "does not subtract the mean",
        "unbiased": lambda f: f"divides the sum of squares by {'n - 1' if f.unbiased else 'n'}",
        "outside": lambda f: "adds epsilon to the " + ("standard deviation" if f.outside else "variance"),
        "affine": lambda f: f"computes {f.affine} (w: weight, b: bias)",
    }
    says = [
        f"epsilon is {number(ours.epsilon)} in ours and {number(theirs.epsilon)} in theirs"
        if field == "epsilon"
        else f"ours {phrases[field](ours)}, theirs {phrases[field](theirs)}"
        for field in differ
    ]
    mend = " ".join(filter(None, (mend_of(field, theirs, layer) for field in differ)))
    return Hypothesis(name, "; ".join(says), mend, lambda *_: arrays.apply(ours))


def averaged(over: tuple) -> str:
    kind, count = over[0], over[-1]
    return {
        "groups": f"{count} groups of neighbouring channels and all pixels",
        "interleaved groups": f"{count} groups, each of every {count}th channel, and all pixels",
        "groups of each pixel": f"the channels of each pixel, in {count} groups",
        "last axes": "the last axis" if count == 1 else f"the last {count} axes",
        "batch": "the images and pixels of the batch",
        "running": "the running mean and variance",
    }[kind]


def mend_of(field: str, theirs: Form, layer: str) -> str:
    if field == "epsilon":
        return f"Write {layer}(..., epsilon={number(theirs.epsilon)})."
    if field == "over":
        return {
            "groups": f"Write {layer}(..., num_groups={theirs.over[-1]}); a group is C // num_groups neighbours.",
            "running": f"Write {layer}(..., use_running_average=True), or call model.eval().",
            "batch": f"Write {layer}(..., use_running_average=False), or call model.train().",
        }.get(theirs.over[0], f"Average over {averaged(theirs.over)} (reduction_axes).")
    return {
        "centred": "Subtract the mean." if theirs.centred else f"Leave the mean: nnx.RMSNorm in place of {layer}.",
        "unbiased": f"Write jnp.var(x, axes, ddof={int(theirs.unbiased)}).",
        "outside": "Write (x - mean) / (std + epsilon)."
        if theirs.outside
        else "Write (x - mean) / sqrt(var + epsilon).",
        "affine": f"Write {theirs.affine} (use_scale, use_bias, and the order).",
    }[field]


def one_pass(finding: Finding, layer: Layer, theirs: Form) -> Iterator[Hypothesis]:
    """Each group of ours has a factor of its own, and its variance is wrong by rounding of mean^2 only."""
    if theirs.over[0] == "running":
        return
    y = finding.our_output
    shape, axes = layer.view(theirs.over)
    divisor, variance = layer.slopes(theirs, y)
    mean_square = np.square(layer.x.reshape(shape)).mean(axes, keepdims=True)
    wrong = np.abs(np.square(divisor) - theirs.epsilon - variance)
    step = 2.0**-24 if is_rounded_to(y, np.float32) else 2.0**-53
    if not np.isfinite(wrong).all() or (wrong > 256 * step * (mean_square + 1e-30)).any():
        return
    if not (mean_square > 100 * variance).any():
        return
    yield Hypothesis(
        "one_pass_variance",
        "ours computes the variance as mean(x^2) - mean(x)^2, which loses digits where the mean is large",
        f"Write {constructor(finding.pair.ours)}(..., use_fast_variance=False).",
        partial(with_divisors, layer, theirs, divisor),
        largest=0.1,
        remainder=0.05,
    )


def with_divisors(layer: Layer, form: Form, divisor: np.ndarray, *_) -> np.ndarray:
    """The layer's output with a given divisor for each group."""
    centred, _ = layer.statistics(form)
    weight, bias = AFFINES[form.affine](layer.weight, layer.bias)
    return (centred / divisor).reshape(layer.x.shape) * weight + bias
