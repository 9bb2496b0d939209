"""Why two noise schedules differ: hypotheses, each computed and compared with theirs."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jax_ddpm.doctor.records import Cause
from jax_ddpm.doctor.step_variants import betas_of
from jax_ddpm.schedules import (
    linear_betas,
    scaled_linear_betas,
    sigmoid,
    sigmoid_shaped_betas,
    zero_terminal_snr_betas,
)
from jax_ddpm.spec.diffusion_config import DiffusionConfig

WITH_ENDS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "sigmoid_betas": sigmoid_shaped_betas}


def schedule_causes(
    theirs: np.ndarray, ours: np.ndarray, config: DiffusionConfig, given: np.ndarray | None = None
) -> tuple[list[Cause], float]:
    """The causes and the largest difference. A cause "dtype" says that they are equal up to rounding.

    given: our schedule, if it is not that of `config`; then hypotheses change it instead of the settings.
    """
    values = theirs.astype(np.float64)
    exact = theirs.dtype == np.float64 and not np.array_equal(values, values.astype(np.float32))
    unit = 1e-13 if exact else max(np.finfo(np.float32).eps, float(np.finfo(theirs.dtype).eps))
    error = float(np.abs(values - ours).max()) if len(values) == len(ours) else np.inf
    if len(values) == len(ours) and is_rounding(values, ours, unit):
        if exact or error == 0:
            return [], error
        kind = "float32" if theirs.dtype == np.float64 else str(theirs.dtype)
        sentence = f"Their betas equal ours up to the rounding of {kind} (largest difference {error:.1e})."
        return [Cause("dtype", sentence, "compute the schedule in float64 and cast it once.", error)], error
    for make in (numbers_of_another_kind, shifted_in_t, of_other_settings, of_other_formulas):
        for name, sentence, mend, made in make(values, ours, config, given is None):
            if len(made) == len(values) and np.isfinite(made).all() and is_rounding(values, made, unit):
                return [Cause(name, sentence, mend, float(np.abs(made - values).max()))], error
    return [], error


def is_rounding(values: np.ndarray, expected: np.ndarray, unit: float) -> bool:
    """Whether computing in a dtype with the relative rounding `unit` explains the difference.

    A schedule that ends in pure noise divides alpha_bars, which loses digits where alpha_bar is small.
    """
    alpha_bars = np.cumprod(1 - np.clip(expected, 0, 1))
    lost = 1 / np.sqrt(np.maximum(alpha_bars, 1e-12)) if np.max(expected) > 0.1 else 0
    return bool((np.abs(values - expected) <= 3 * unit * (1 + lost)).all())


Hypotheses = Iterator[tuple[str, str, str, np.ndarray]]


def numbers_of_another_kind(values, ours, config, known) -> Hypotheses:
    """Alphas or alpha_bars for betas; the wrong order; another number of timesteps."""
    alpha_bars = np.cumprod(1 - ours)
    kinds = {"alpha_t": 1 - ours, "alpha_bar_t": alpha_bars, "sqrt(alpha_bar_t)": np.sqrt(alpha_bars)}
    kinds |= {"sqrt(1 - alpha_bar_t)": np.sqrt(1 - alpha_bars), "sqrt(beta_t)": np.sqrt(ours)}
    for kind, made in kinds.items():
        yield "quantity", f"Theirs are {kind}, not beta_t.", "give beta_t.", made
    yield "order", "Their betas are ours in the opposite order.", "order them by t: the smallest first.", ours[::-1]
    if known and len(values) != len(ours) and config.schedule != "trained":
        made = betas_of(replace(config, timesteps=len(values)))
        sentence = f"Their schedule has T = {len(values)}; ours has T = {len(ours)}. It is of the same kind."
        yield "timesteps", sentence, f"set timesteps={len(values)}.", made


def shifted_in_t(values, ours, config, known) -> Hypotheses:
    for first, last in ((ours[:1], 0), (np.zeros(1), 0), (np.zeros(1), 1)):
        made = np.concatenate([first, ours[: len(ours) - 1 + last]])
        sentence = f"Their beta at t is ours at t - 1 (theirs begin with {first[0]:g})."
        yield "t_off_by_one", sentence, "count t from 0: betas[0] is beta_1 of the paper.", made
    for made in (np.append(ours[1:], ours[-1:]), ours[1:]):
        yield "t_off_by_one", "Their beta at t is ours at t + 1.", "count t from 0: betas[0] is beta_1.", made
    if known and config.schedule in WITH_ENDS:
        longer = betas_of(replace(config, timesteps=len(values) + 1))
        sentence = "Their steps between the end points are those of T + 1 betas"
        mend = "use linspace(beta_start, beta_end, T): both end points belong to the schedule."
        yield "end_point", f"{sentence}, without the last: beta_end is not reached.", mend, longer[:-1]
        yield "end_point", f"{sentence}, without the first: beta_start is left out.", mend, longer[1:]


def of_other_settings(values, ours, config, known) -> Hypotheses:
    """Another terminal SNR, kind, or end points (taken from their first and last beta)."""
    terminal = "set zero_terminal_snr in DiffusionConfig (--zero-terminal-snr), or rescale the betas in both."
    if known and config.zero_terminal_snr:
        plain = betas_of(replace(config, zero_terminal_snr=False))
        yield "zero_terminal_snr", "Theirs keeps some signal at T; ours has zero terminal SNR.", terminal, plain
        bars = np.cumprod(1 - plain)
        shifted = np.append(1, (bars - bars[-1]) * bars[0] / (bars[0] - bars[-1]))
        sentence = "Theirs shifts and scales alpha_bar; ours shifts and scales its square root (Lin et al. 2023)."
        yield "zero_terminal_snr", sentence, "rescale sqrt(alpha_bar).", 1 - shifted[1:] / shifted[:-1]
        last = np.prod(1 - ours[:-1])
        end = (1 - values[-1]) * last
        sentence = f"Their last alpha_bar is {end:.3g}; ours is 0 (zero terminal SNR)."
        yield "zero_terminal_snr", sentence, "set the last alpha_bar to 0.", np.append(ours[:-1], values[-1])
    else:
        sentence = "Theirs has zero terminal SNR (Lin et al. 2023, Algorithm 1); ours keeps some signal at T."
        with np.errstate(all="ignore"):
            yield "zero_terminal_snr", sentence, terminal, zero_terminal_snr_betas(ours)
    T, start, end = len(values), config.beta_start, config.beta_end
    ours_is = f"ours is {config.schedule}" if known else "ours is not"
    for kind in ("linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_betas"):
        if not (known and kind == config.schedule):
            made = betas_of(DiffusionConfig(T, kind, start, end))
            mend = f'set schedule="{kind}" in DiffusionConfig (--schedule {kind}).'
            yield "schedule_kind", f"Their schedule is {kind}; {ours_is}.", mend, made
    for kind, (first, last) in ends_of(values).items():
        if not 0 < first <= last < 1:
            continue
        made = WITH_ENDS[kind](T, first, last)
        numbers = f"beta_start={first:.6g}, beta_end={last:.6g}"
        if kind == config.schedule and known:
            changed = [
                n for n, a, b in (("beta_start", first, start), ("beta_end", last, end)) if abs(a / b - 1) > 1e-5
            ]
            name = changed[0] if len(changed) == 1 else "end_points"
            scaled = abs(first / start - 1000 / T) < 1e-4 * first / start and abs(last / end * T / 1000 - 1) < 1e-4
            more = f" Theirs are ours times 1000 / T = {1000 / T:g}." if scaled and T != 1000 else ""
            sentence = f"Their schedule goes from {first:.6g} to {last:.6g}; ours from {start:g} to {end:g}.{more}"
            yield name, sentence, f"set {numbers}.", made
        else:
            mend = f'set schedule="{kind}", {numbers} in DiffusionConfig.'
            yield "schedule_kind", f"Their schedule is {kind} from {first:.6g} to {last:.6g}; {ours_is}.", mend, made


def ends_of(values: np.ndarray) -> dict[str, tuple[float, float]]:
    """Schedule kind -> the beta_start and beta_end that its first and last beta imply."""
    first, last = float(values[0]), float(values[-1])
    low, high = sigmoid(-6.0), sigmoid(6.0)
    span = (last - first) / (high - low)
    return {
        "linear": (first, last),
        "scaled_linear": (first, last),
        "sigmoid_betas": (first - low * span, first + (1 - low) * span),
    }


OR_TRAINED = ', or give ours their betas: schedule="trained", trained_betas=tuple(betas).'
LIMITS = {"at most 0.999": (0, 0.999), "at most 0.9999": (0, 0.9999), "not limited": (-np.inf, np.inf)}
LIMITS |= {"from 0.0001 to 0.9999": (1e-4, 0.9999), "at most 0.02": (0, 0.02), "at most 0.5": (0, 0.5)}
OFFSETS, POWERS = (0.008, 0.0, 0.01, 0.08, 0.0008, 0.001, 0.1), (2, 1)
SIGMOIDS, TEMPERATURES = ((-3, 3), (-6, 6), (0, 3), (-1.5, 1.5), (-3, 6)), (1.0, 0.7, 0.9, 1.1, 0.5, 0.3)


def of_other_formulas(values, ours, config, known) -> Hypotheses:
    """Cosine and sigmoid schedules with other constants."""
    T, ours_is = len(values), f"ours is {config.schedule}" if known else "ours is not"
    grids = {"t / T": np.arange(T + 1) / T, "t / (T + 1)": np.arange(T + 1) / (T + 1)}
    for grid, s, power, divided, limit in itertools.product(grids, OFFSETS, POWERS, (True, False), LIMITS):
        f = np.cos((grids[grid] + s) / (1 + s) * np.pi / 2) ** power
        if not divided:
            f[0] = 1.0
        with np.errstate(all="ignore"):
            made = np.clip(1 - f[1:] / f[:-1], *LIMITS[limit])
        name = "max_beta" if (grid, s, power, divided) == ("t / T", 0.008, 2, True) else "cosine_constants"
        name = name if config.schedule == "cosine" or not known else "schedule_kind"
        said = f"s = {s:g}, the cosine to the power {power}, at {grid}, betas {limit}"
        said += "" if divided else ", alpha_bar not divided by its value at 0"
        mend = f"use s = 0.008, the square, t / T and betas of at most 0.999{OR_TRAINED}"
        yield name, f"Their schedule is a cosine with {said}; {ours_is}.", mend, made
    for (start, end), tau in itertools.product(SIGMOIDS, TEMPERATURES):
        low, high = sigmoid(start / tau), sigmoid(end / tau)
        u = grids["t / T"] * (end - start) + start
        gamma = np.clip((high - sigmoid(u / tau)) / (high - low), 1e-9, 1)
        made = np.minimum(1 - gamma[1:] / gamma[:-1], 0.999)
        own = " from -3 to 3 with tau = 1" if known and config.schedule == "sigmoid" else ""
        sentence = f"Their schedule is a sigmoid from {start} to {end} with tau = {tau:g}; {ours_is}{own}."
        name = "sigmoid_range" if config.schedule == "sigmoid" or not known else "schedule_kind"
        yield name, sentence, f"use start = -3, end = 3, tau = 1{OR_TRAINED}", made
