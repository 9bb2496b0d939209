"""Faults in schedules, samplers and guidance: how each is seeded, and its rung."""

from dataclasses import replace

import numpy as np

import torch_ref.diffusion
import torch_ref.rng
import torch_ref.schedules
from parity_tests import measures_guidance
from parity_tests.seeding import swap
from torch_ref.sampling import guidance, reverse, samplers


def one_behind(extract):
    return lambda table, t: extract(table, (t - 1).clamp(min=0))


def sampler_setting(**wrong):
    def make(step):
        return lambda tables, config, *a, **named: step(tables, replace(config, **wrong), *a, **named)

    return swap(reverse, "ancestral_step", make)


def eta_ignored(step):
    return lambda *a, eta, **settings: step(*a, eta=0.0, **settings)


def history_forgotten(step):
    return lambda *a, **settings: (step(*a, **settings)[0], a[-1])


def without_correction(step):
    return lambda *a, predict=None, **settings: step(*a, **settings)


def one_lower(below):
    return lambda chain, timesteps: np.maximum(below(chain, timesteps) - 1, -1)


def of_the_whole_chain(tables):
    return lambda config, dtype, chain=None: tables(config, dtype)


def shifted_alpha_bars(betas):
    alpha_bars = np.cumprod(1 - betas)
    alpha_bars = np.append(1, (alpha_bars - alpha_bars[-1]) * alpha_bars[0] / (alpha_bars[0] - alpha_bars[-1]))
    return 1 - alpha_bars[1:] / alpha_bars[:-1]


def ends_nearly_in_noise(rescaled):
    """As Euler's method in diffusers: 2^-24 for the last alpha_bar."""

    def faulty(betas):
        betas = rescaled(betas)
        return np.append(betas[:-1], 1 - 2**-24 / np.prod(1 - betas[:-1]))

    return faulty


def noise_drawn_sideways(noise_at):
    def faulty(keys, number, shape, dtype):
        height, width, channels = shape
        return noise_at(keys, number, (width, height, channels), dtype).mT

    return faulty


def batch_rescaled(guided, conditional, rescale):
    """With one standard deviation for the batch."""
    return rescale * (conditional.std() / guided.std()) * guided + (1 - rescale) * guided


def halves_of_guidance_swapped(guided_prediction):
    return lambda sampler, x_t, t, conditional, other: guided_prediction(sampler, x_t, t, other, conditional)


def guided_after_clipping(guided_prediction):
    """Clips the x_0 of both predictions of eps, guides these, and computes eps from the result."""
    tables = torch_ref.schedules.schedule_tables(measures_guidance.SCHEDULE, np.float64)

    def faulty(sampler, x_t, t, *predictions):
        if sampler.sampler != "heun":  # the others have their own objectives
            return guided_prediction(sampler, x_t, t, *predictions)
        eps = (torch_ref.diffusion.split_prediction(each, x_t)[0] for each in predictions)
        x_0 = (torch_ref.diffusion.predicted_x_0(tables, "eps", x_t, t, each).clamp(-1, 1) for each in eps)
        guided = guided_prediction(sampler, x_t, t, *x_0)
        return torch_ref.diffusion.predicted_eps(tables, "x0", x_t, t, guided)

    return faulty


GUIDED, GUIDED_SAMPLES = "guided predictions, float64", "guided samples, float64"
FAULTS = {
    "heun: the mean of two slopes from nearly pure noise": (
        swap(torch_ref.sampling.steps, "HEUN_MAX_SIGMA", lambda _: 1e9),
        "one reverse step, zero terminal SNR",
    ),
    "noise drawn with height and width swapped": (
        swap(samplers, "noise_at", noise_drawn_sideways),
        "10-step DDPM, not square, float32",
    ),
    "zero terminal SNR by shifting alpha_bar": (
        swap(torch_ref.schedules, "zero_terminal_snr_betas", lambda _: shifted_alpha_bars),
        "schedule tables",
    ),
    "scaled_linear without the root": (
        swap(torch_ref.schedules, "scaled_linear_betas", lambda _: torch_ref.schedules.linear_betas),
        "schedule tables",
    ),
    "sigmoid of another range": (
        swap(torch_ref.schedules, "sigmoid", lambda f: lambda x: f(x / 2)),
        "schedule tables",
    ),
    "clip range ignored": (sampler_setting(clip_range=1.0), "one reverse step, all kinds"),
    "no largest threshold": (sampler_setting(clip_max=None), "one reverse step, all kinds"),
    "nearly no signal for none": (
        swap(torch_ref.schedules, "zero_terminal_snr_betas", ends_nearly_in_noise),
        "one reverse step, zero terminal SNR",
    ),
    "t off by one": (swap(torch_ref.diffusion, "extract", one_behind), "noising"),
    "t off by one, in the reverse step": (
        swap(torch_ref.diffusion, "extract", one_behind),
        "one reverse step, all kinds",
    ),
    "posterior for beta variance": (sampler_setting(variance="posterior"), "one reverse step, all kinds"),
    "posterior for beta variance, in samples": (
        sampler_setting(variance="posterior"),
        "1000-step samples, 8-bit pixels, float32",
    ),
    "no clipping": (sampler_setting(clip="none"), "one reverse step, all kinds"),
    "alpha_bar of t - 1 off by one in a chain": (
        swap(torch_ref.schedules, "next_timesteps", one_lower),
        "50-step DDIM, eta 0.5, float32",
    ),
    "betas of the whole chain in a shortened one": (
        swap(samplers, "schedule_tables", of_the_whole_chain),
        "50-step DDPM, 8-bit pixels",
    ),
    "eta ignored": (swap(reverse, "ddim_step", eta_ignored), "50-step DDIM, eta 0.5, 8-bit pixels"),
    "history not carried": (swap(reverse, "dpmpp_step", history_forgotten), "20-step DPM-Solver++, float32"),
    "Heun's correction dropped": (swap(reverse, "edm_step", without_correction), "10-step Heun, float32"),
    "noise drawn at the number of the step": (
        swap(
            samplers,
            "reverse_process",
            lambda walk: (
                lambda step, predict, x_T, chain, draw, *a: walk(
                    step, predict, x_T, chain, lambda t: draw(int(np.searchsorted(-chain, -t))), *a
                )
            ),
        ),
        "50-step DDPM, float32",
    ),
    "x_T drawn at the chain's first timestep": (
        swap(
            samplers,
            "reverse_process",
            lambda walk: (
                lambda step, predict, x_T, chain, draw, *a: walk(step, predict, draw(int(chain[0])), chain, draw, *a)
            ),
        ),
        "50-step DDIM, eta 0.5, float32",
    ),
    "guidance: added to the labelled prediction": (
        swap(
            guidance, "plain", lambda _: lambda conditional, other, weight: conditional + weight * (conditional - other)
        ),
        GUIDED,
    ),
    "guidance: standard deviation of the batch": (
        swap(guidance, "rescaled", lambda _: batch_rescaled),
        GUIDED,
    ),
    "guidance: first timestep of the interval left out": (
        swap(guidance, "is_guided", lambda is_guided: lambda interval, t: is_guided((interval[0] + 1, interval[1]), t)),
        GUIDED,
    ),
    "guidance: last timestep of the interval left out, in samples": (
        swap(guidance, "is_guided", lambda is_guided: lambda interval, t: is_guided((interval[0], interval[1] - 1), t)),
        GUIDED_SAMPLES,
    ),
    "guidance: learned variance guided": (
        swap(guidance, "split_prediction", lambda _: lambda prediction, x: (prediction, None)),
        GUIDED,
    ),
    "guidance: halves swapped": (swap(guidance, "guided_prediction", halves_of_guidance_swapped), GUIDED_SAMPLES),
    "guidance: halves swapped, in edits": (
        swap(guidance, "guided_prediction", halves_of_guidance_swapped),
        "guided edits, float64",
    ),
    "guidance: of the clipped x_0": (swap(guidance, "guided_prediction", guided_after_clipping), GUIDED_SAMPLES),
    "guidance: a class for the null label": (
        swap(
            samplers,
            "tensors",
            lambda tensors: (
                lambda labels, *a: tensors(labels._replace(none=None if labels.none is None else 0 * labels.none), *a)
            ),
        ),
        GUIDED_SAMPLES,
    ),
    "guidance: the guide's labels swapped": (
        swap(
            samplers,
            "tensors",
            lambda tensors: (
                lambda labels, *a: tensors(
                    labels._replace(of_guide=None if labels.of_guide is None else labels.of_guide[::-1].copy()), *a
                )
            ),
        ),
        GUIDED_SAMPLES,
    ),
    "another purpose number": (
        swap(torch_ref.rng, "key", lambda key: lambda seed, purpose, *address: key(seed, purpose + 1, *address)),
        "bits, uniforms, integers",
    ),
    "betas rounded to float32": (
        swap(torch_ref.schedules, "linear_betas", lambda betas: lambda *a: betas(*a).astype(np.float32).astype(float)),
        "schedule tables",
    ),
}
