"""Activations: their formulas in NumPy float64, and which of them gives an array from another.

A slope, a factor inside or a scale is solved for.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from jax_ddpm.doctor.causes.hypothesis import Hypothesis, kinds, number, rounded
from jax_ddpm.doctor.records import Finding, relative_error


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def erf(x: np.ndarray) -> np.ndarray:
    from scipy import special

    return special.erf(x)


def elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


FORMULAS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "identity": (lambda x: x, "{x}"),
    "SiLU": (lambda x: x * sigmoid(x), "jax.nn.silu({x})"),
    "ReLU": (lambda x: np.maximum(x, 0), "jax.nn.relu({x})"),
    "GELU (erf)": (lambda x: x * (1 + erf(x / math.sqrt(2))) / 2, "jax.nn.gelu({x}, approximate=False)"),
    "GELU (tanh)": (
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        "jax.nn.gelu({x}, approximate=True)",
    ),
    "GELU (sigmoid)": (lambda x: x * sigmoid(1.702 * x), "{x} * jax.nn.sigmoid(1.702 * {x})"),
    "Mish": (lambda x: x * np.tanh(np.logaddexp(0, x)), "jax.nn.mish({x})"),
    "sigmoid": (sigmoid, "jax.nn.sigmoid({x})"),
    "tanh": (np.tanh, "jnp.tanh({x})"),
    "ELU": (elu, "jax.nn.elu({x})"),
    "SELU": (
        lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772),
        "jax.nn.selu({x})",
    ),
    "softplus": (lambda x: np.logaddexp(0, x), "jax.nn.softplus({x})"),
    "log sigmoid": (lambda x: -np.logaddexp(0, -x), "jax.nn.log_sigmoid({x})"),
    "hard swish": (lambda x: x * np.clip(x + 3, 0, 6) / 6, "jax.nn.hard_swish({x})"),
    "hard sigmoid": (lambda x: np.clip(x + 3, 0, 6) / 6, "jax.nn.hard_sigmoid({x})"),
    "ReLU6": (lambda x: np.clip(x, 0, 6), "jax.nn.relu6({x})"),
    "hard tanh": (lambda x: np.clip(x, -1, 1), "jax.nn.hard_tanh({x})"),
    "softsign": (lambda x: x / (1 + np.abs(x)), "jax.nn.soft_sign({x})"),
    "squared ReLU": (lambda x: np.square(np.maximum(x, 0)), "jnp.square(jax.nn.relu({x}))"),
    "leaky ReLU, slope 0.01": (lambda x: np.where(x > 0, x, 0.01 * x), "jax.nn.leaky_relu({x}, negative_slope=0.01)"),
    "leaky ReLU, slope 0.2": (lambda x: np.where(x > 0, x, 0.2 * x), "jax.nn.leaky_relu({x}, negative_slope=0.2)"),
    "sine": (np.sin, "jnp.sin({x})"),
    "square": (np.square, "jnp.square({x})"),
}


def leaky_relu(x: np.ndarray, y: np.ndarray) -> tuple[str, str, Callable] | None:
    """The slope of y below 0, if y is x above 0."""
    below = x < 0
    if not below.any() or relative_error(y[~below], x[~below]) > 1e-6:
        return None
    at = np.argmin(np.where(below, x, 0))
    slope = rounded(float(y.flat[at] / x.flat[at]), lambda s: relative_error(np.where(below, s * x, x), y) < 1e-6)
    if slope is None or slope in (0, 1):
        return None
    text = f"leaky ReLU, slope {number(slope)}"
    return text, f"jax.nn.leaky_relu({{x}}, negative_slope={number(slope)})", lambda x: np.where(x > 0, x, slope * x)


def swish(x: np.ndarray, y: np.ndarray) -> tuple[str, str, Callable] | None:
    """beta of y = x sigmoid(beta x)."""
    with np.errstate(all="ignore"):
        gate = y / x
        logit = np.log(gate / (1 - gate)) / x
    good = np.isfinite(logit) & (np.abs(x) > 1e-3 * np.abs(x).max()) & (gate > 1e-6) & (gate < 1 - 1e-6)
    if not good.any():
        return None
    beta = rounded(float(np.median(logit[good])), lambda b: relative_error(x * sigmoid(b * x), y) < 1e-6)
    if beta is None or beta in (0, 1):
        return None
    return (
        f"Swish, beta {number(beta)}",
        f"{{x}} * jax.nn.sigmoid({number(beta)} * {{x}})",
        lambda x: x * sigmoid(beta * x),
    )


def exponential(x: np.ndarray, y: np.ndarray) -> tuple[str, str, Callable] | None:
    """alpha of an ELU."""
    at = int(np.argmin(x))
    if x.flat[at] >= 0:
        return None
    alpha = rounded(float(y.flat[at] / np.expm1(x.flat[at])), lambda a: relative_error(elu(x, a), y) < 1e-6)
    if alpha is None or alpha in (0, 1):
        return None
    return f"ELU, alpha {number(alpha)}", f"jax.nn.elu({{x}}, alpha={number(alpha)})", partial(elu, alpha=alpha)


def scaled(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, str, Callable]]:
    """A factor times a formula."""
    for name, (formula, code) in FORMULAS.items():
        value = formula(x)
        at = int(np.argmax(np.abs(value)))
        if value.flat[at] == 0:
            continue
        factor = rounded(
            float(y.flat[at] / value.flat[at]),
            lambda f, value=value: relative_error(f * value, y) < 1e-9,
        )
        if factor not in (None, 0.0):
            yield (
                f"{number(factor)} times {name}",
                f"{number(factor)} * {code}",
                lambda x, factor=factor, formula=formula: factor * formula(x),
            )


def read_off(x: np.ndarray, y: np.ndarray) -> tuple[str, str, Callable] | None:
    """(name, code with {x}, formula) of the activation that gives y from x, or None."""
    if x.shape != y.shape or not x.size:
        return None
    for name, (formula, code) in FORMULAS.items():
        if relative_error(formula(x), y) < (1e-12 if y.any() else 0):
            return name, code, formula
    return leaky_relu(x, y) or swish(x, y) or exponential(x, y) or next(scaled(x, y), None)


def hypotheses(finding: Finding) -> Iterator[Hypothesis]:
    """For modules that are activations on their side."""
    call, x = finding.pair.theirs, finding.their_input
    if call.parameters and "PReLU" not in kinds(call):
        return
    theirs, ours = read_off(x, finding.their_output), read_off(x, finding.our_output)
    if theirs is None or ours is None or theirs[0] == ours[0]:
        return
    yield Hypothesis(
        "activation",
        f"ours is {ours[0]}, theirs is {theirs[0]}",
        f"Write {theirs[1].format(x='x')}.",
        lambda x, *_: ours[2](x),
    )
