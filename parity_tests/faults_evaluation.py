"""Faults in likelihoods and the classifier of the evaluation: how each is seeded, and its rung."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

import torch_ref.classifier
import torch_ref.diffusion
import torch_ref.flow
import torch_ref.likelihood
from parity_tests.seeding import swap


def without_tails(probability):
    """The outermost levels of a pixel as wide as the others."""
    return lambda x, mean, sigma: probability(torch.zeros_like(x), mean - x, sigma)


def in_nats(module):
    faulty = SimpleNamespace(**{**vars(math), "log": lambda _: 1.0})
    return swap(module, "math", lambda _: faulty)


def first_of_each_range(timesteps_in):
    return lambda edges, uniforms: timesteps_in(edges, 0 * uniforms)


def of_noise_alone(velocity):
    """Leaves out what the scale sqrt(alpha_bar) adds to the divergence."""

    def faulty(tables, *a):
        f, divergence = velocity(tables, *a)
        return f, divergence + torch_ref.diffusion.extract(tables.sqrt_one_minus_alpha_bars, a[3]).flatten() ** 2

    return faulty


def larger_signs(velocity):
    return lambda *a: velocity(*a[:-1], a[-1] * 1.5)


def aligned_right_and_below(x):
    return nn.functional.max_pool2d(x[..., x.shape[-2] % 2 :, x.shape[-1] % 2 :], 2)


CLASSIFIER = "classifier, features, float32"
BOUND, NETWORK_BOUND = "bits per dimension, float64", "bits per dimension, network and drawn t, float64"
FLOW = "bits per dimension by the ODE, float64"
LABELLED_BITS = "bits per dimension with labels, float64"
FAULTS = {
    "decoder without its edge bins": (swap(torch_ref.diffusion, "pixel_probability", without_tails), BOUND),
    "beta for posterior variance, in the bound": (
        swap(
            torch_ref.likelihood,
            "model_log_variance",
            lambda f: lambda tables, config, *a: f(tables, replace(config, variance="beta"), *a),
        ),
        BOUND,
    ),
    "beta for beta~ in the decoder": (
        swap(
            torch_ref.likelihood,
            "model_log_variance",
            lambda _: lambda tables, config, t, v: torch.log(torch_ref.diffusion.extract(tables.betas, t)),
        ),
        NETWORK_BOUND,
    ),
    "a timestep of the bound left out": (
        swap(torch_ref.likelihood, "strata", lambda strata: lambda timesteps, count: strata(timesteps - 1, count)),
        BOUND,
    ),
    "natural logarithm for bits, in L_t": (in_nats(torch_ref.diffusion), BOUND),
    "natural logarithm for bits, in L_T": (in_nats(torch_ref.likelihood), BOUND),
    "the first timestep of each range": (
        swap(torch_ref.likelihood, "timesteps_in", first_of_each_range),
        NETWORK_BOUND,
    ),
    "noise of the bound drawn at the number of the range": (
        swap(
            torch_ref.likelihood,
            "noise_at",
            lambda draw: lambda keys, t, *a: draw(keys, np.searchsorted(np.unique(t), t), *a),
        ),
        NETWORK_BOUND,
    ),
    "divergence without the scale": (swap(torch_ref.flow, "velocity", of_noise_alone), FLOW),
    "signs that are not of size 1": (swap(torch_ref.flow, "velocity", larger_signs), FLOW),
    "natural logarithm for bits, in the ODE's density": (in_nats(torch_ref.flow), FLOW),
    "labels of the first batch in every batch": (
        swap(torch_ref.likelihood, "tensors", lambda f: lambda labels, rows, device: f(labels, rows % 2, device)),
        LABELLED_BITS,
    ),
    "one label for all images, in the ODE": (
        swap(torch_ref.flow, "with_labels", lambda f: lambda network, labels: f(network, 0 * labels)),
        LABELLED_BITS,
    ),
    "classifier: mean for maximum pooling": (
        swap(torch_ref.classifier, "max_pool", lambda _: lambda x: nn.functional.avg_pool2d(x, 2)),
        CLASSIFIER,
    ),
    "classifier: pooling of the last row and column": (
        swap(torch_ref.classifier, "max_pool", lambda _: aligned_right_and_below),
        CLASSIFIER,
    ),
    "classifier: images reduced by their first pixels": (
        swap(torch_ref.classifier, "average_pool", lambda _: lambda x, size: x[..., :-1:size, :-1:size]),
        CLASSIFIER,
    ),
    "classifier: flattened channels first": (
        swap(torch_ref.classifier, "flatten", lambda _: lambda x: x.flatten(1)),
        CLASSIFIER,
    ),
    "classifier: images in [0, 1]": (
        swap(torch_ref.classifier, "prepare_images", lambda f: lambda *a: (f(*a) + 1) / 2),
        CLASSIFIER,
    ),
    "classifier: summed cross entropy": (
        swap(torch_ref.classifier, "loss", lambda f: lambda network, *a: f(network, *a) * len(a[1])),
        "classifier, gradients, float64",
    ),
}
