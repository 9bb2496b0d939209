"""Sentences for the differences between two sampler steps."""

from dataclasses import fields

from jax_ddpm.doctor.records import Cause
from jax_ddpm.doctor.step_variants import Variant

SAID = {
    "objective": {
        "eps": "takes the network's output for the noise eps",
        "x0": "takes the network's output for x_0",
        "v": "takes the network's output for v",
        "minus_eps": "takes the network's output for -eps",
        "minus_v": "takes the network's output for -v",
    },
    "shift": {
        0: "reads its tables at t",
        -1: "reads its tables at t - 1",
        1: "reads its tables at t + 1",
    },
    "previous": {
        "chain": "takes alpha_bar of the next lower timestep for alpha_bar_prev, and 1 after the last step",
        "whole": "takes alpha_bar and beta of the whole chain of T steps",
        "two_lower": "takes alpha_bar one timestep below the next lower one for alpha_bar_prev",
        "same": "takes alpha_bar of t itself for alpha_bar_prev",
        "not_one": "takes alpha_bar_0 for alpha_bar_prev at t = 0, where it is 1",
    },
    "formula": {
        "posterior": "uses the mean of the posterior (Ho et al. 2020, eq. 7 and 11)",
        "ddim": "is a DDIM step (Song et al. 2021, eq. 12)",
        "ddim_eps_kept": "is a DDIM step that keeps the predicted eps where x_0 is clipped",
        "swapped": "multiplies x_0 by the posterior mean's factor of x_t, and x_t by that of x_0",
        "sqrt_alpha_bar": "divides by sqrt(alpha_bar_t) where the mean has sqrt(alpha_t)",
        "no_root_noise": "divides beta_t by 1 - alpha_bar_t where the mean has its square root",
        "no_root_alpha": "divides by alpha_t where the mean has its square root",
        "not_scaled": "does not divide the mean by sqrt(alpha_t)",
        "x_0_no_root": "multiplies eps by 1 - alpha_bar_t in x_0, without the square root",
        "no_root_prev": "multiplies x_0 by alpha_bar_prev, without the square root, in the posterior's mean",
        "only_x_0": "returns x_0 where the mean of the posterior is due",
        "noise_for_eps": "adds new noise where DDIM adds the predicted eps",
    },
    "clip": {
        "none": "does not clip x_0",
        "x0": "clips x_0 to [-1, 1]",
        "unit": "clips x_0 to [0, 1]",
        "range": "clips x_0 to +-clip_range",
        "dynamic": "limits x_0 by dynamic thresholding",
        "no_largest_threshold": "limits x_0 by dynamic thresholding without a largest threshold",
        "state": "clips x_{t-1}, not x_0, to [-1, 1]",
        "unit_state": "clips x_{t-1} to [0, 1]",
    },
    "sigma": {
        "beta": "adds noise of the variance beta_t",
        "posterior": "adds noise of the posterior's variance",
        "zero": "adds no noise",
        "beta_no_root": "multiplies the noise by beta_t, not by its square root",
        "posterior_no_root": "multiplies the noise by the posterior's variance, not by its square root",
        "one_minus_alpha_bar": "adds noise of the variance 1 - alpha_bar_t",
        "one": "adds noise of the variance 1",
        "eta": "adds noise of eta times the posterior's standard deviation",
        "learned_range": "adds noise of the learned variance (Nichol & Dhariwal 2021, eq. 15)",
        "learned_upside_down": "reads the learned variance upside down: beta_t at -1, the posterior's at 1",
    },
    "noise_at_zero": {False: "adds no noise at t = 0", True: "adds noise at t = 0, too"},
    "correction": {False: "has no second evaluation (Euler)", True: "has Heun's second evaluation"},
}
NAMES = {
    "shift": "t_off_by_one",
    "previous": "alpha_bar_prev",
    "formula": "mean",
    "sigma": "variance",
    "noise_at_zero": "noise_at_t_0",
    "correction": "heun_correction",
}
RANGES = {"unit", "unit_state"}
SETTINGS = {"objective": ("eps", "x0", "v"), "clip": ("none", "x0", "dynamic", "state"), "sigma": ("beta", "posterior")}
"""Values that are settings of DiffusionConfig."""


def explain_difference(theirs: Variant, ours: Variant, residual: float, who: str) -> list[Cause]:
    """One cause for each difference between the two steps, in the order of the computation."""
    causes = []
    for field in fields(Variant):
        a, b = getattr(theirs, field.name), getattr(ours, field.name)
        if a != b:
            verb = SAID[field.name]
            sentence = f"Their step {verb[a]}; {who} {verb[b]}."
            causes.append(Cause(cause_name(field.name, a, b), sentence, mend_of(field.name, a, verb[b], who), residual))
    return causes


def cause_name(field: str, theirs, ours) -> str:
    if field == "clip" and RANGES & {theirs, ours}:
        return "image_range"
    if field == "formula" and "posterior" in (theirs, ours) and {theirs, ours} & {"ddim", "ddim_eps_kept"}:
        return "sampler"
    return NAMES.get(field, field)


def mend_of(field: str, theirs, correct: str, who: str) -> str:
    """The setting that makes ours like theirs where there is one, else what their line should do."""
    if who == "ours" and theirs in SETTINGS.get(field, ()):
        name = "variance" if field == "sigma" else field
        return f'set {name}="{theirs}" in DiffusionConfig (--{name} {theirs}), or change theirs: the step {correct}.'
    return f"change the line so that the step {correct}."
