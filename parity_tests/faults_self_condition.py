"""Faults in self-conditioning: how each is seeded, and its rung."""

import torch

import torch_ref.objectives
import torch_ref.rng
import torch_ref.step
from parity_tests.seeding import swap
from torch_ref.sampling import editing, guidance, inpainting, reverse, samplers, solvers, steps
from torch_ref.unets.lucidrains import LucidrainsUNet

OUTPUTS, SAMPLES = "self-conditioned outputs, float64", "self-conditioned samples, float64"
EDITS, TRAINING = "self-conditioned edits, float64", "self-conditioned training, float64"


def image_before_x_0(forward):
    return lambda self, x, t, x_self_cond: forward(self, x_self_cond, t, x_self_cond=x)


def not_limited(remembering_x_0):
    """The remembered x_0 is the one before clipping."""

    def faulty(step, predicted_x_0):
        tables, config = predicted_x_0.args

        def raw(x, prediction, t):
            ts = steps.of_images(x, t)
            return steps.diffusion.predicted_x_0(tables, config.objective, x, ts, prediction)

        return remembering_x_0(step, raw)

    return faulty


def first_x_0_kept(remembering_x_0):
    """Every step is given the zeros of the first one."""

    def faulty(step, predicted_x_0):
        with_history = remembering_x_0(step, predicted_x_0)
        return lambda x, prediction, t, noise, history: (with_history(x, prediction, t, noise, history)[0], history)

    return faulty


def first_evaluation_kept(step):
    """Heun: the next step is given the x_0 of the first evaluation."""

    def faulty(tables, config, x, prediction, t, noise, history=None, **settings):
        result = step(tables, config, x, prediction, t, noise, history, **settings)
        if history is None:
            return result
        return result[0], (steps.clipped_x_0(tables, config, x, prediction, t),)

    return faulty


class TorchWithGradients:
    """The module torch, in which no_grad does nothing."""

    def __getattr__(self, name):
        return torch.enable_grad if name == "no_grad" else getattr(torch, name)


def clipped(predicted_x_0):
    return lambda *a: predicted_x_0(*a).clamp(-1, 1)


FAULTS = {
    "self-conditioning: x_t before x_0": (swap(LucidrainsUNet, "forward", image_before_x_0), OUTPUTS),
    "self-conditioning: x_0 not limited": (swap(reverse, "remembering_x_0", not_limited), SAMPLES),
    "self-conditioning: always zeros": (swap(reverse, "remembering_x_0", first_x_0_kept), SAMPLES),
    "self-conditioning: the first step sees x_T": (
        swap(
            samplers,
            "initial_history",
            lambda f: lambda x, *a: None if (h := f(x, *a)) is None else (x, *h[1:]),
        ),
        SAMPLES,
    ),
    "self-conditioning: the guide left out": (
        swap(guidance, "guided_prediction", lambda f: lambda sampler, x, t, conditional, other: conditional),
        SAMPLES,
    ),
    "self-conditioning: Heun's second call is given zeros": (
        swap(solvers, "given_x_0", lambda f: lambda x_0, history: f(torch.zeros_like(x_0), history)),
        SAMPLES,
    ),
    "self-conditioning: Heun's first x_0 is kept": (swap(reverse, "edm_step", first_evaluation_kept), SAMPLES),
    "self-conditioning: always zeros, in inversion": (swap(editing, "remembering_x_0", first_x_0_kept), EDITS),
    "self-conditioning: always zeros, in inpainting": (
        swap(inpainting, "make_step", lambda make: lambda *a: forgetful(make(*a))),
        EDITS,
    ),
    "self-conditioning: never in training": (
        swap(torch_ref.step, "self_conditioned", lambda _: lambda network: False),
        TRAINING,
    ),
    "self-conditioning: drawn at another address": (
        swap(torch_ref.rng, "SELF_CONDITION", lambda _: torch_ref.rng.JUMP),
        TRAINING,
    ),
    "self-conditioning: a gradient passes through x_0": (
        swap(torch_ref.step, "torch", lambda _: TorchWithGradients()),
        TRAINING,
    ),
    "self-conditioning: x_0 clipped in training": (
        swap(torch_ref.objectives.Discrete, "predicted_x_0", clipped),
        TRAINING,
    ),
    "self-conditioning: the same dropout in both passes": (swap(torch_ref.step, "FIRST_PASS", lambda _: 0), TRAINING),
}


def forgetful(step):
    return lambda x, prediction, t, noise, history: (step(x, prediction, t, noise, history)[0], history)
