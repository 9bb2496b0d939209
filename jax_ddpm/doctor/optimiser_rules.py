"""Optimisers as people write them, right and wrong, in NumPy: one function of a rule's settings."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from jax_ddpm.doctor.records import Cause

FOUND = 1e-7
"""Relative difference of the updates at which a rule counts as found."""


@dataclass(frozen=True)
class Rule:
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) or SGD, and the ways in which they are mistaken."""

    kind: str = "adam"
    rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.0
    epsilon_place: str = "outside"
    """Outside the root, inside it, or outside before the correction of the bias."""
    corrected: str = "both"
    """Which moments are corrected for their bias: both, none, first, second."""
    decoupled: bool = False
    """Whether the decay acts on the parameters, not on the gradients."""
    decay_times_rate: bool = True
    amsgrad: str = "none"
    """none, raw (torch: the largest second moment, then the correction) or corrected (optax: the other way round)."""
    clip: str = "none"
    """none, value, norm (optax), norm_torch (adds 1e-6 to the norm), each (every array by its own norm)."""
    limit: float = 0.0
    nesterov: bool = False
    damped: float = 1.0
    """For SGD with momentum: the factor of a new gradient."""


def simulate(rule: Rule, parameters: list[np.ndarray], gradients: list[list[np.ndarray]]) -> np.ndarray:
    """The parameters after each step: (steps, N)."""
    values = [p.copy() for p in parameters]
    m, v, largest = ([np.zeros_like(p) for p in parameters] for _ in range(3))
    path = []
    for step, gradient in enumerate(gradients, 1):
        gradient = clipped(rule, gradient)
        for i, g in enumerate(gradient):
            if rule.decay and not rule.decoupled:
                g = g + rule.decay * values[i]
            if rule.kind == "sgd":
                m[i] = g if step == 1 and rule.damped != 1 else rule.b1 * m[i] + rule.damped * g
                update = g + rule.b1 * m[i] if rule.nesterov else (m[i] if rule.b1 else g)
            else:
                m[i], v[i] = rule.b1 * m[i] + (1 - rule.b1) * g, rule.b2 * v[i] + (1 - rule.b2) * g * g
                scale = 1 - rule.b2**step if rule.amsgrad == "corrected" else 1.0
                largest[i] = np.maximum(largest[i], v[i] / scale)
                update = adam_update(rule, m[i], v[i] if rule.amsgrad == "none" else largest[i] * scale, step)
            shrink = rule.decay * (rule.rate if rule.decay_times_rate else 1) if rule.decoupled else 0
            values[i] = values[i] * (1 - shrink) - rule.rate * update
        path.append(np.concatenate([value.ravel() for value in values]))
    return np.stack(path)


def adam_update(rule: Rule, m: np.ndarray, v: np.ndarray, step: int) -> np.ndarray:
    first = 1 - rule.b1**step if rule.corrected in ("both", "first") else 1.0
    second = 1 - rule.b2**step if rule.corrected in ("both", "second") else 1.0
    if rule.epsilon_place == "inside":
        return m / first / np.sqrt(v / second + rule.epsilon)
    if rule.epsilon_place == "before_correction":
        return m / first / ((np.sqrt(v) + rule.epsilon) / np.sqrt(second))
    return m / first / (np.sqrt(v / second) + rule.epsilon)


def clipped(rule: Rule, gradient: list[np.ndarray]) -> list[np.ndarray]:
    if rule.clip == "value":
        return [np.clip(g, -rule.limit, rule.limit) for g in gradient]
    if rule.clip == "each":
        return [g * min(1, rule.limit / np.linalg.norm(g)) for g in gradient]
    if rule.clip in ("norm", "norm_torch"):
        norm = np.sqrt(sum(np.sum(g * g) for g in gradient)) + (1e-6 if rule.clip == "norm_torch" else 0)
        return [g * min(1, rule.limit / norm) for g in gradient]
    return list(gradient)


def difference(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Differences of the steps of two paths (steps, N), each relative to b's step, less the parameters' rounding."""
    steps = [np.diff(np.concatenate([start[None], path]), axis=0) for path in (a, b)]
    apart = steps[0] - steps[1]
    rounding = 1e-15 * np.maximum(1, np.abs(b))
    return np.sign(apart) * np.maximum(np.abs(apart) - rounding, 0) / (np.abs(steps[1]) + 1e-12)


CHOICES = {
    "clip": ("none", "value", "norm", "norm_torch", "each"),
    "decoupled": (False, True),
    "epsilon_place": ("outside", "inside", "before_correction"),
    "corrected": ("both", "none", "first", "second"),
    "amsgrad": ("none", "raw", "corrected"),
    "decay_times_rate": (True, False),
    "nesterov": (False, True),
    "kind": ("adam", "sgd"),
}
NUMBERS = ("rate", "epsilon", "b1", "b2", "decay", "limit", "damped")
STARTS = {  # where the search for a number begins, besides theirs
    "rate": (1e-4, 1e-3, 1e-2),
    "epsilon": (1e-10, 1e-8, 1e-7, 1e-6, 1e-3),
    "b1": (0.0, 0.5, 0.9, 0.95, 0.99),
    "b2": (0.9, 0.95, 0.98, 0.99, 0.999, 0.9999),
    "decay": (0.0, 1e-4, 1e-2, 0.1),
    "limit": (0.1, 1.0, 5.0, 10.0),
    "damped": (0.1, 0.5, 1.0),
}
NAMES = {
    "rate": "learning_rate",
    "epsilon_place": "epsilon_place",
    "corrected": "bias_correction",
    "decoupled": "decay_coupling",
    "decay_times_rate": "decay_times_rate",
    "decay": "weight_decay",
    "b1": "beta_1",
    "b2": "beta_2",
    "clip": "clipping",
    "limit": "clip_limit",
    "kind": "optimizer_kind",
    "damped": "dampening",
}


def explain(theirs: Rule, ours: np.ndarray, parameters, gradients) -> list[Cause]:
    """The causes: settings of their rule that, changed, make our parameters. Empty if none do."""
    start = np.concatenate([p.ravel() for p in parameters])

    def apart(rule):
        with np.errstate(all="ignore"):
            return np.nan_to_num(difference(simulate(rule, parameters, gradients), ours, start), nan=1e9).ravel()

    def error_of(rule):
        return float(np.abs(apart(rule)).max())

    for candidates in (singles(theirs, error_of), pairs(theirs, error_of), several(theirs, apart, error_of)):
        found = [(error, rule) for rule, error in candidates if error <= FOUND]
        if found:
            error, rule = min(found, key=lambda pair: pair[0])
            return [cause_of(name, theirs, rule, error) for name in changed(theirs, rule)]
    return []


def changed(a: Rule, b: Rule) -> list[str]:
    """The settings that differ, but for those that follow from another."""
    order = ("kind", "clip", "limit", "decoupled", "decay_times_rate", "decay", "epsilon_place", "corrected", "amsgrad")
    order += ("nesterov", "damped", "rate", "epsilon", "b1", "b2")
    names = [name for name in order if getattr(a, name) != getattr(b, name)]
    if "kind" in names:
        return ["kind"]
    return [name for name in names if name != "limit" or "none" not in (a.clip, b.clip)]


def others(rule: Rule, name: str) -> list[Rule]:
    """The rule with other values of a choice; of a clipping that is new, with the usual limits."""
    rules = []
    for value in CHOICES[name]:
        if value != getattr(rule, name):
            limits = STARTS["limit"] if name == "clip" and rule.clip == "none" else (rule.limit,)
            rules += [replace(rule, **{name: value, "limit": limit}) for limit in limits]
    return rules


def singles(rule: Rule, error_of: Callable[[Rule], float]) -> Iterator[tuple[Rule, float]]:
    """Rules with one difference, and how far each is from ours."""
    for name in CHOICES:
        yield from ((other, error_of(other)) for other in others(rule, name))
    yield from (solved(rule, number, error_of) for number in NUMBERS)


def pairs(rule: Rule, error_of: Callable[[Rule], float]) -> Iterator[tuple[Rule, float]]:
    """Rules with two choices that differ."""
    for a, b in itertools.combinations(CHOICES, 2):
        for first in others(rule, a):
            yield from ((second, error_of(second)) for second in others(first, b))


def several(rule: Rule, apart: Callable, error_of: Callable[[Rule], float]) -> Iterator[tuple[Rule, float]]:
    """Rules with several numbers, and at most one choice, that differ: the numbers are fitted together."""
    for candidate in [rule, *(other for name in CHOICES for other in others(rule, name))]:
        for decay in (rule.decay, 1e-4, 1e-2) if candidate.decoupled else (rule.decay,):
            fitted = fit(replace(candidate, decay=decay), apart)
            yield fitted, error_of(fitted)
            if error_of(fitted) <= FOUND:
                return


def fit(rule: Rule, apart: Callable) -> Rule:
    """The rule with learning rate, epsilon, betas and decay that fit best, rounded to six digits."""
    from scipy.optimize import least_squares

    b1 = rule.b1 if 0 < rule.b1 < 1 else 0.9

    def made(z):
        rate, epsilon, one, two = np.exp(np.clip(z[:4], -40, 3))
        return replace(rule, rate=rate, epsilon=epsilon, b1=1 - one, b2=1 - two, decay=max(0.0, z[4] / 100))

    def bounded(z):
        return np.arctan(apart(made(z)))

    start = np.log([rule.rate, max(rule.epsilon, 1e-12), 1 - b1, 1 - rule.b2])
    result = least_squares(bounded, np.append(start, 100 * rule.decay), xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=60)
    best = made(result.x)
    return replace(rule, **{n: float(f"{getattr(best, n):.6g}") for n in ("rate", "epsilon", "b1", "b2", "decay")})


def solved(rule: Rule, number: str, error_of: Callable[[Rule], float]) -> tuple[Rule, float]:
    """The rule with the value of one number that fits best: the usual values first, then a search around the best."""
    own = getattr(rule, number)
    values = sorted({*STARTS[number], own})
    errors = [error_of(replace(rule, **{number: value})) for value in values]
    best = int(np.argmin(errors))
    if errors[best] <= FOUND:
        return replace(rule, **{number: values[best]}), errors[best]
    low, high = values[max(0, best - 1)], values[min(len(values) - 1, best + 1)]
    for _ in range(40):
        at = np.linspace(low, high, 9) if number.startswith("b") or low <= 0 else np.geomspace(low, high, 9)
        errors = [error_of(replace(rule, **{number: float(value)})) for value in at]
        best = int(np.argmin(errors))
        if errors[best] <= 1e-11 or (high - low) <= 1e-13 * abs(high):
            break
        low, high = at[max(0, best - 1)], at[min(8, best + 1)]
    value = float(f"{at[best]:.9g}")
    tidy = replace(rule, **{number: value})
    return tidy, error_of(tidy)


CLIPS = {
    "none": "does not clip the gradients",
    "value": "clips every gradient value to +-{limit:g}",
    "norm": "scales the gradients to the global norm {limit:g}",
    "norm_torch": "scales the gradients to the global norm {limit:g} and adds 1e-6 to the norm, as torch does",
    "each": "scales the gradient of each array to the norm {limit:g}",
}
PLACES = {
    "outside": "adds epsilon outside the square root",
    "inside": "adds epsilon inside the square root",
    "before_correction": "adds epsilon to the root before the correction of the bias",
}
AMSGRAD = {
    "none": "has no amsgrad",
    "raw": "divides by the largest second moment and corrects its bias afterwards (amsgrad, as torch does)",
    "corrected": "divides by the largest corrected second moment (amsgrad, as optax does)",
}
CORRECTED = {
    "both": "corrects the bias of both moments",
    "none": "corrects the bias of neither moment",
    "first": "corrects the bias of the first moment only",
    "second": "corrects the bias of the second moment only",
}
MENDS = {
    "rate": "give both the learning rate {theirs:g}.",
    "epsilon": "set eps={theirs:g} in optax.",
    "decay": "set weight_decay={theirs:g} in optax (the defaults: optax.adamw 1e-4, torch.optim.AdamW 1e-2).",
    "b1": "set b1={theirs:g} in optax.",
    "b2": "set b2={theirs:g} in optax.",
    "limit": "give optax's clipping the limit {theirs:g}.",
}


def cause_of(name: str, theirs: Rule, ours: Rule, error: float) -> Cause:
    a, b = getattr(theirs, name), getattr(ours, name)
    phrases = {
        "clip": lambda rule: CLIPS[rule.clip].format(limit=rule.limit),
        "epsilon_place": lambda rule: PLACES[rule.epsilon_place],
        "corrected": lambda rule: CORRECTED[rule.corrected],
        "decoupled": lambda rule: (
            "subtracts the decay from the parameters (decoupled, AdamW)"
            if rule.decoupled
            else "adds the decay to the gradients (coupled, Adam with L2)"
        ),
        "decay_times_rate": lambda rule: (
            "multiplies the decay by the learning rate"
            if rule.decay_times_rate
            else "does not multiply the decay by it"
        ),
        "amsgrad": lambda rule: AMSGRAD[rule.amsgrad],
        "nesterov": lambda rule: "has Nesterov's momentum" if rule.nesterov else "has plain momentum",
        "kind": lambda rule: f"is {'Adam' if rule.kind == 'adam' else 'SGD'}",
    }
    words = {"rate": "the learning rate", "decay": "the weight decay", "b1": "beta_1", "b2": "beta_2"}
    words |= {"limit": "the clipping limit", "damped": "1 - dampening"}
    if name in phrases:
        sentence = f"Their optimiser {phrases[name](theirs)}; ours {phrases[name](ours)}."
        mend = f"change ours so that it {phrases[name](theirs)}."
    else:
        sentence = f"Theirs has {words.get(name, name)} {a:g}; ours has {b:g}."
        mend = MENDS.get(name, "give both the value {theirs:g}.").format(theirs=a)
    return Cause(NAMES.get(name, name), sentence, mend, error)


def explain_ema(theirs: np.ndarray, ours: np.ndarray, at: np.ndarray, rate_of: Callable[[int], float]) -> list[Cause]:
    """Causes of different rates of an exponential moving average at the steps `at`."""

    def close(rates):
        return np.abs(rates - ours).max() <= 1e-7

    limit = [rates.max() for rates in (theirs, ours)]
    warm = {
        "(1 + step) / (10 + step)": (1 + at) / (10 + at),
        "step / (9 + step)": at / (9 + at),
        "1 - (1 + step)^(-2/3)": 1 - (1 + at) ** (-2 / 3),
    }

    def kind_of(rates, decay):
        if np.ptp(rates) <= 1e-9:
            return "none"
        return next((k for k, w in warm.items() if np.abs(np.minimum(decay, w) - rates).max() <= 1e-7), "another")

    for shift in (1, -1):
        if np.ptp(theirs) > 1e-9 and close(np.array([rate_of(max(0, int(s) + shift)) for s in at])):
            sentence = f"Our average at step s keeps what theirs keeps at step s {'+' if shift > 0 else '-'} 1."
            return [Cause("ema_step", sentence, "count the steps of the average from 0 in both.", 0.0)]
    if close(1 - theirs):
        sentence = f"Theirs keeps {theirs[-1]:g} of the average; ours keeps {ours[-1]:g}: the two factors are swapped."
        return [Cause("ema_swapped", sentence, "new average = decay * average + (1 - decay) * parameters.", 0.0)]
    kinds, causes = [kind_of(theirs, limit[0]), kind_of(ours, limit[1])], []
    if kinds[0] != kinds[1]:
        sentence = f"Their decay is warmed up by: {kinds[0]}; ours by: {kinds[1]}."
        causes.append(Cause("ema_warmup", sentence, f"warm up the decay in ours by: {kinds[0]}.", 0.0))
    if abs(limit[0] - limit[1]) > 1e-7:
        sentence = f"The decay of their average is {limit[0]:g}; that of ours is {limit[1]:g}."
        causes.append(Cause("ema_decay", sentence, f"set the decay to {limit[0]:g}.", 0.0))
    return causes
