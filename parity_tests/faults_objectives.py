"""Faults in objectives, data ranges and times: how each is seeded, and its rung."""

from dataclasses import replace
from unittest import mock

import numpy as np
import torch

import torch_ref.diffusion
import torch_ref.step
from jax_ddpm.spec.data_range import USUAL
from jax_ddpm.spec.registered import NoiseLevel
from parity_tests.seeding import swap
from torch_ref.objectives import EDM, Flow, discrete
from torch_ref.sampling import reverse, samplers, solvers, steps


def reversed_levels(levels):
    """The noise levels above 0 in the other order."""

    def faulty(self, num_steps):
        grid = levels(self, num_steps)
        return np.append(grid[:1], grid[:0:-1])

    return faulty


def corrected_in_the_last_step(step):
    """The level 0 becomes a small one, for which there is a slope."""

    def faulty(objective, levels, predict, x, prediction, i, noise):
        levels = torch.cat([levels[:1], levels.clamp(min=1e-4)])
        return step(objective, levels, predict, x, prediction, i + 1, noise)

    return faulty


def a_quarter_into_the_step(step):
    """The slope after a quarter of the step in place of that in its middle."""

    def faulty(objective, levels, predict, x, prediction, i, noise):
        half_step = torch.stack([(levels[i] + levels[i + 1]) / 2, levels[i + 1]])
        return x + 2 * (step(objective, half_step, predict, x, prediction, 0, noise) - x)

    return faulty


def unweighted(loss_per_image):
    """The squared error of D, without its weight 1 / c_out^2."""

    def faulty(self, predict, x_0, level, noise, **settings):
        return loss_per_image(self, predict, x_0, level, noise, **settings) * self.output_scale(level) ** 2

    return faulty


def swapped_scales():
    """c_skip and c_out change places."""
    skip, out = EDM.skip_scale, EDM.output_scale
    return mock.patch.multiple(EDM, skip_scale=out, output_scale=skip)


def of_time(change):
    """The network's time changed."""

    def make(input_scale_and_time):
        def faulty(self, level):
            scale, time = input_scale_and_time(self, level)
            return scale, change(time)

        return faulty

    return make


def levels_swapped(own_step):
    """Gives the registered step the level of the lower timestep as that of t, and the other way round."""

    def faulty(tables, config, sampler, *arguments):
        def step(x_t, x_0, eps, now, below, noise):
            return sampler.step(x_t, x_0, eps, below, now, noise)

        return own_step(tables, config, sampler._replace(step=step), *arguments)

    return faulty


def with_the_predicted_eps(own_step):
    def faulty(tables, config, sampler, x_t, prediction, t, noise):
        ts = torch.full((len(x_t),), int(t))
        predicted = torch_ref.diffusion.predicted_eps(tables, config.objective, x_t, ts, prediction)

        def step(x_t, x_0, eps, now, below, noise):
            return sampler.step(x_t, x_0, predicted, now, below, noise)

        return own_step(tables, config, sampler._replace(step=step), x_t, prediction, t, noise)

    return faulty


LOSSES, LOSS_GRADIENTS = "losses and loss weights, all objectives, float64", "gradients, edm and flow, float64"
EDM_SAMPLES, FLOW_SAMPLES = "6-step heun, edm, float64", "6-step midpoint, flow, float64"
FAULTS = {
    "edm: c_skip and c_out swapped": (swapped_scales, EDM_SAMPLES),
    "edm: error of D without its weight": (swap(EDM, "loss_per_image", unweighted), LOSSES),
    "edm: input not scaled": (
        swap(EDM, "input_scale_and_time", lambda f: lambda self, level: (level * 0 + 1, f(self, level)[1])),
        LOSS_GRADIENTS,
    ),
    "edm: ln(sigma) for ln(sigma) / 4": (swap(EDM, "input_scale_and_time", of_time(lambda time: 4 * time)), LOSSES),
    "edm: ln(sigma) stretched": (
        swap(EDM, "draw_level", lambda f: lambda self, *a: f(self, *a) ** 1.2),
        LOSSES,
    ),
    "edm: noise levels reversed": (swap(EDM, "levels", reversed_levels), EDM_SAMPLES),
    "edm: even noise levels": (
        swap(EDM, "levels", lambda f: lambda self, n: np.linspace(0, self.config.sigma_max, n + 1)),
        EDM_SAMPLES,
    ),
    "edm: Heun's correction in the last step": (swap(solvers, "heun_step", corrected_in_the_last_step), EDM_SAMPLES),
    "edm: Euler for Heun": (swap(solvers, "heun_step", lambda _: solvers.euler_step), EDM_SAMPLES),
    "flow: x_0 - noise for noise - x_0": (swap(Flow, "target", lambda f: lambda *a: -f(*a)), LOSSES),
    "flow: x + t v for x - t v": (
        swap(Flow, "predicted_x_0", lambda f: lambda self, x, level, v: f(self, x, level, -v)),
        FLOW_SAMPLES,
    ),
    "flow: time not scaled": (swap(Flow, "input_scale_and_time", of_time(lambda time: time / 1000)), LOSSES),
    "flow: t = 1 at the image": (swap(Flow, "draw_level", lambda f: lambda *a: 1 - f(*a)), LOSSES),
    "flow: slope after a quarter of the step": (
        swap(solvers, "midpoint_step", a_quarter_into_the_step),
        FLOW_SAMPLES,
    ),
    "min-SNR of the prediction for that of x_0": (
        swap(EDM, "output_scale", lambda _: lambda self, level: level * 0 + 1),
        LOSSES,
    ),
    "P2 without k": (swap(torch_ref.diffusion, "p2_weights", lambda f: lambda snr, g, k: f(snr, g, 0.0)), LOSSES),
    "Huber's loss times delta": (
        swap(
            torch_ref.diffusion,
            "pixel_loss",
            lambda f: lambda error, kind, d: f(error, kind, d) * (d if kind == "huber" else 1),
        ),
        LOSSES,
    ),
    "registered parts: levels of both timesteps swapped": (
        swap(reverse, "own_step", levels_swapped),
        "registered parts, samples, float64",
    ),
    "registered parts: the predicted eps in place of that of the limited x_0": (
        swap(reverse, "own_step", with_the_predicted_eps),
        "registered parts, samples, float64",
    ),
    "registered parts: scale of the loss weight not squared": (
        swap(torch_ref.diffusion, "own_output_scale", lambda scale: lambda *a: scale(*a).abs().sqrt()),
        "registered parts, losses, float64",
    ),
    "registered parts: signal and sigma swapped": (
        swap(torch_ref.diffusion, "noise_level", lambda level: lambda *a: NoiseLevel(*level(*a)[::-1])),
        "registered parts, losses, float64",
    ),
    "data range: images trained on in [-1, 1]": (
        swap(torch_ref.step, "from_levels", lambda f: lambda levels, _: f(levels, USUAL)),
        "data ranges and times, losses, float64",
    ),
    "data range: decoder's sigma not in [-1, 1]": (
        swap(torch_ref.diffusion, "deviation_from_data_range", lambda _: lambda sigma, _: sigma),
        "data ranges and times, bits, float64",
    ),
    "data range: samples not mapped back": (
        swap(samplers, "from_data_range", lambda _: lambda x, _: x),
        "data ranges and times, samples, float64",
    ),
    "data range: x_0 clipped to [-1, 1]": (
        swap(steps, "threshold", lambda f: lambda *a: f(*a[:5])),
        "data ranges and times, samples, float64",
    ),
    "data range: states clipped to [-1, 1]": (
        swap(steps, "clamp_state", lambda f: lambda x, config: f(x, replace(config, data_range=USUAL))),
        "data ranges and times, samples, float64",
    ),
    "time of the network: t in place of what t_input says": (
        swap(discrete, "network_time", lambda _: lambda config, x_t, t: t),
        "data ranges and times, samples, float64",
    ),
    "time of the network: t / T for (t + 1) / T": (
        swap(
            discrete,
            "network_time",
            lambda f: lambda config, x_t, t: f(config, x_t, t - int(config.t_input == "fraction_from_one")),
        ),
        "data ranges and times, losses, float64",
    ),
}
