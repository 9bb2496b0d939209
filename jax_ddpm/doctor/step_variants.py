"""Sampler steps as people write them, right and wrong: one function of a point in the space of their differences."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from jax_ddpm.doctor.call_step import RESPONSE
from jax_ddpm.schedules import make_betas
from jax_ddpm.spec.data_range import USUAL, from_data_range, to_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.spacing import next_timesteps, spaced_timesteps

CHOICES = {
    "objective": ("eps", "x0", "v", "minus_eps", "minus_v"),
    "shift": (0, -1, 1),
    "previous": ("chain", "whole", "two_lower", "same", "not_one"),
    "betas": ("chain", "whole"),
    "formula": (
        *(
            "posterior",
            "ddim",
            "ddim_eps_kept",
            "swapped",
            "sqrt_alpha_bar",
            "no_root_noise",
            "no_root_alpha",
            "not_scaled",
        ),
        *("x_0_no_root", "no_root_prev", "only_x_0", "noise_for_eps"),
    ),
    "clip": ("none", "x0", "unit", "range", "dynamic", "no_largest_threshold", "state", "unit_state"),
    "sigma": (
        *("beta", "posterior", "zero", "beta_no_root", "posterior_no_root", "one_minus_alpha_bar", "one", "eta"),
        *("learned_range", "learned_upside_down"),
    ),
    "noise_at_zero": (False, True),
    "correction": (False, True),
}


@dataclass(frozen=True)
class Variant:
    """One way to compute x_{t-1}. CHOICES lists the values of each field."""

    objective: str = "eps"
    """What the network's output is taken for."""
    shift: int = 0
    """Tables are read at t + shift."""
    previous: str = "chain"
    """Which alpha_bar stands for that of the step before."""
    betas: str = "chain"
    """beta of the shortened chain, or of the whole one."""
    formula: str = "posterior"
    clip: str = "x0"
    sigma: str = "beta"
    noise_at_zero: bool = False
    correction: bool = False
    """Heun's second evaluation."""


def variant_of(config: DiffusionConfig, sampler: SamplerConfig) -> Variant:
    """What jax_ddpm's step does under these settings: ddpm, ddim, heun or euler."""
    clip = "range" if config.clip == "x0" and config.clip_range != 1 else config.clip
    if sampler.sampler == "ddpm":
        return Variant(objective=config.objective, clip=clip, sigma=config.variance)
    sigma = "eta" if sampler.eta else "zero"
    return Variant(
        objective=config.objective, formula="ddim", clip=clip, sigma=sigma, correction=sampler.sampler == "heun"
    )


@dataclass(frozen=True)
class Probe:
    """Inputs of a step at several t: arrays (N, B, C, H, W), t (N,), and the settings that variants refer to."""

    chain: np.ndarray
    """Ascending timesteps that the sampler visits."""
    t: np.ndarray
    x: np.ndarray
    output: np.ndarray
    noise: np.ndarray
    betas: np.ndarray
    config: DiffusionConfig
    sampler: SamplerConfig


def make_probe(config: DiffusionConfig, sampler: SamplerConfig, betas: np.ndarray, shape=(2, 2, 4, 3)) -> Probe:
    """Noisy images of every kind of pixel, with x_0 inside and outside of [-1, 1]."""
    T, alpha_bars = len(betas), np.cumprod(1 - betas)
    chain = np.sort(spaced_timesteps(sampler.spacing, sampler.num_steps or T, alpha_bars))
    n = len(chain)
    t = chain[np.unique(np.clip([0, 1, 2, n // 4, n // 2, n - 2, n - 1], 0, n - 1))]
    if alpha_bars[-1] < 1e-12 and config.objective == "eps":
        t = t[t < T - 1]  # x_0 cannot be computed there
    g = np.random.default_rng(0)
    x_0, eps, noise = g.standard_normal((3, len(t), *shape))
    signal, level = (np.sqrt(v)[:, None, None, None, None] for v in (alpha_bars[t], 1 - alpha_bars[t]))
    x = signal * x_0 + level * eps
    output = {"eps": eps, "x0": x_0, "v": signal * eps - level * x_0}[config.objective]
    if config.variance == "learned_range":
        output = np.concatenate([output, np.clip(g.standard_normal(x.shape), -1, 1)], axis=2)
    return Probe(chain, t, x, output, noise, betas, config, sampler)


def simulate(variant: Variant, probe: Probe) -> np.ndarray:
    """States after the step, (N, B, C, H, W), float64. Ho et al. 2020, eq. 6, 7, 11; Song et al. 2021, eq. 12."""
    config, T = probe.config, len(probe.betas)
    alpha_bars = np.cumprod(1 - probe.betas)
    t = np.clip(probe.t + variant.shift, 0, T - 1)
    padded = np.append(1.0, alpha_bars)
    below = next_timesteps(probe.chain, T)
    proper = padded[below[t] + 1]
    previous = {
        "chain": proper,
        "whole": padded[t],
        "two_lower": padded[np.maximum(below[t] - 1, -1) + 1],
        "same": alpha_bars[t],
        "not_one": alpha_bars[np.maximum(below[t], 0)],
    }[variant.previous]
    ab = alpha_bars[t]
    alpha = (
        ab / previous if variant.betas == "chain" and variant.previous in ("chain", "two_lower") else 1 - probe.betas[t]
    )
    if variant.betas == "chain" and variant.previous in ("whole", "same", "not_one"):
        alpha = ab / proper
    ab, previous, alpha = (value[:, None, None, None, None] for value in (ab, previous, alpha))
    beta = 1 - alpha
    channels = probe.x.shape[2]
    output, learned = probe.output[:, :, :channels], probe.output[:, :, channels:]
    sign = -1 if variant.objective.startswith("minus") else 1
    with np.errstate(all="ignore"):
        raw = predicted_x_0(variant, probe.x, sign * output, ab)
        x_0 = clipped(variant.clip, raw, config)
        posterior_variance = beta * (1 - previous) / (1 - ab)
        known = raw if variant.formula == "ddim_eps_kept" else x_0
        eps = (probe.x - np.sqrt(ab) * known) / np.sqrt(1 - ab)
        sigma = sigma_of(variant.sigma, beta, posterior_variance, ab, learned, probe)
        if not variant.noise_at_zero:
            sigma = np.where((below[probe.t] < 0)[:, None, None, None, None], 0, sigma)
        mean = mean_of(variant, probe, x_0, eps, ab, previous, alpha, beta, posterior_variance)
        if variant.correction:
            mean = corrected(variant, probe, mean, eps, sign * output, ab, previous)
        y = mean + sigma * probe.noise
    if variant.clip == "state":
        return np.clip(y, *config.data_range)
    return np.clip(y, 0, 1) if variant.clip == "unit_state" else y


def predicted_x_0(variant, x, output, ab):
    objective = variant.objective.removeprefix("minus_")
    if objective == "x0":
        return output
    if objective == "v":
        return np.sqrt(ab) * x - np.sqrt(1 - ab) * output
    if variant.formula == "x_0_no_root":
        return (x - (1 - ab) * output) / np.sqrt(ab)
    return (x - np.sqrt(1 - ab) * output) / np.sqrt(ab)


def clipped(clip, x_0, config):
    if config.data_range != USUAL and clip in ("x0", "range", "dynamic", "no_largest_threshold"):
        limited = clipped(clip, from_data_range(x_0, config.data_range), replace(config, data_range=USUAL))
        return to_data_range(limited, config.data_range)
    if clip == "x0":
        return np.clip(x_0, -1, 1)
    if clip == "unit":
        return np.clip(x_0, 0, 1)
    if clip == "range":
        return np.clip(x_0, -config.clip_range, config.clip_range)
    if clip in ("dynamic", "no_largest_threshold"):
        s = np.quantile(np.abs(x_0), config.clip_percentile, axis=(2, 3, 4), keepdims=True)
        s = np.clip(s, 1, config.clip_max if clip == "dynamic" else None)
        return np.clip(x_0, -s, s) / s
    return x_0


def sigma_of(kind, beta, posterior_variance, ab, learned, probe):
    if kind.startswith("learned"):
        v = learned if kind == "learned_range" else -learned
        if v.size == 0:
            return np.nan
        at_0 = posterior_variance == 0
        first = posterior_variance[~at_0].min(initial=np.inf)
        log_posterior = np.log(np.where(at_0, first, posterior_variance))
        return np.exp(0.5 * ((v + 1) / 2 * np.log(beta) + (1 - v) / 2 * log_posterior))
    return {
        "beta": np.sqrt(beta),
        "posterior": np.sqrt(posterior_variance),
        "zero": np.zeros_like(beta),
        "beta_no_root": beta,
        "posterior_no_root": posterior_variance,
        "one_minus_alpha_bar": np.sqrt(1 - ab),
        "one": np.ones_like(beta),
        "eta": probe.sampler.eta * np.sqrt(posterior_variance),
    }[kind]


def mean_of(variant, probe, x_0, eps, ab, previous, alpha, beta, posterior_variance):
    x, level = probe.x, np.sqrt(1 - ab)
    c_0, c_t = np.sqrt(previous) * beta / (1 - ab), np.sqrt(alpha) * (1 - previous) / (1 - ab)
    formula = variant.formula
    if formula in ("ddim", "ddim_eps_kept", "noise_for_eps"):
        variance = 0.0
        if variant.sigma == "eta":
            variance = probe.sampler.eta**2 * posterior_variance
        elif variant.sigma == "posterior":
            variance = posterior_variance
        direction = probe.noise if formula == "noise_for_eps" else eps
        return np.sqrt(previous) * x_0 + np.sqrt(np.maximum(1 - previous - variance, 0)) * direction
    if formula == "swapped":
        return c_t * x_0 + c_0 * x
    if formula == "no_root_prev":
        return previous * beta / (1 - ab) * x_0 + c_t * x
    if formula == "only_x_0":
        return x_0
    if formula == "sqrt_alpha_bar":
        return (x - beta / level * eps) / np.sqrt(ab)
    if formula == "no_root_noise":
        return (x - beta / (1 - ab) * eps) / np.sqrt(alpha)
    if formula == "no_root_alpha":
        return (x - beta / level * eps) / alpha
    if formula == "not_scaled":
        return x - beta / level * eps
    return c_0 * x_0 + c_t * x


def corrected(variant, probe, mean, eps, output, ab, previous):
    """Heun's step (Karras et al. 2022, Algorithm 1) with the stand-in for the network of `call_step`."""
    output = output + RESPONSE * (mean - probe.x)
    ratio, ratio_next = np.sqrt((1 - ab) / ab), np.sqrt((1 - previous) / previous)
    x_0 = clipped(variant.clip, predicted_x_0(variant, mean, output, previous), probe.config)
    next_eps = (mean - np.sqrt(previous) * x_0) / np.sqrt(1 - previous)
    y = np.sqrt(previous) * (probe.x / np.sqrt(ab) + (ratio_next - ratio) * (eps + next_eps) / 2)
    return np.where(previous == 1, mean, y)


def neighbours(centre: Variant, differences: int) -> Iterator[Variant]:
    """All variants with so many fields unlike those of `centre`."""
    names = [field.name for field in fields(Variant)]
    for chosen in itertools.combinations(names, differences):
        others = [[value for value in CHOICES[name] if value != getattr(centre, name)] for name in chosen]
        for values in itertools.product(*others):
            yield replace(centre, **dict(zip(chosen, values, strict=True)))


def identify(y: np.ndarray, probe: Probe, centre: Variant) -> tuple[Variant | None, float]:
    """The variant with the fewest differences from `centre` that makes y, and its error; None if none does."""
    for differences in range(4):
        candidates = [(*distance(simulate(v, probe), y, probe), v) for v in neighbours(centre, differences)]
        excess, error, variant = min(candidates, key=lambda candidate: candidate[0])
        if excess <= 1:
            return variant, error
    return None, np.inf


def distance(ours: np.ndarray, theirs: np.ndarray, probe: Probe) -> tuple[float, float]:
    """The largest difference of states (N, ...) as a multiple of what rounding explains, and relative to theirs.

    Tables in float32 have lost digits at small t, where 1 - alpha_bar cancels.
    """
    with np.errstate(all="ignore"):
        difference = np.abs(ours - theirs).reshape(len(theirs), -1).max(axis=1)
        relative = difference / np.abs(theirs).reshape(len(theirs), -1).max(axis=1)
        explained = 1e-5 + 1.2e-7 / (1 - np.cumprod(1 - probe.betas)[probe.t])
        excess, error = (relative / explained).max(), relative.max()
    return (float(excess), float(error)) if np.isfinite(error) else (np.inf, np.inf)


def betas_of(config: DiffusionConfig) -> np.ndarray:
    settings = config.schedule, config.timesteps, config.beta_start, config.beta_end
    return make_betas(*settings, config.trained_betas, config.zero_terminal_snr)
