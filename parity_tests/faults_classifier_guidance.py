"""Faults in classifier guidance: how each is seeded, and its rung."""

from dataclasses import replace

import torch

from parity_tests.seeding import swap
from torch_ref.diffusion import extract
from torch_ref.sampling import classifier_guidance, reverse, samplers
from torch_ref.unets import adm_classifier

NETWORKS, SAMPLES = "classifiers of noisy images, float64", "classifier-guided samples, float64"


def without_positions(forward):
    def faulty(self, x):
        with torch.no_grad():
            self.positional_embedding.zero_()
        return forward(self, x)

    return faulty


def without_variance(step):
    """The mean is shifted by the gradient alone."""

    def faulty(tables, config, x, prediction, t, noise, *, gradient):
        return step(tables, config, x, prediction, t, noise) + gradient(x, torch.full((len(x),), t))

    return faulty


def before_clipping(step):
    """The classifier shifts eps, from which x_0 is then limited."""

    def faulty(tables, config, x, prediction, t, noise, *, gradient):
        ts = torch.full((len(x),), t)
        shift = extract(tables.sqrt_one_minus_alpha_bars, ts) * gradient(x, ts)
        prediction = torch.cat([prediction[:, : x.shape[1]] - shift, prediction[:, x.shape[1] :]], dim=1)
        return step(tables, config, x, prediction, t, noise)

    return faulty


def limited_again(guided):
    def faulty(tables, config, predict, gradient):
        _, predict_x_0 = guided(tables, config, predict, gradient)
        return replace(config, objective="x0"), predict_x_0

    return faulty


def of_gradient(change):
    """class_gradient with other arguments: change(classifier, classes, scale) -> the same three."""
    return swap(samplers, "class_gradient", lambda f: lambda *arguments: f(*change(*arguments)))


FAULTS = {
    "classifier: no positions in the pooling": (
        swap(adm_classifier.AttentionPool, "forward", without_positions),
        NETWORKS,
    ),
    "classifier: the last token is pooled": (
        swap(adm_classifier, "multi_head", lambda f: lambda *a: f(*a).flip(2)),
        NETWORKS,
    ),
    "classifier: heads before queries in the pooling": (
        swap(adm_classifier, "multi_head", lambda f: lambda qkv, heads, _: f(qkv, heads, False)),
        NETWORKS,
    ),
    "classifier: gradient of the logit": (swap(torch, "log_softmax", lambda _: lambda x, dim: x), NETWORKS),
    "classifier: gradient of the probability": (
        swap(torch, "log_softmax", lambda _: lambda x, dim: torch.softmax(x, dim)),
        NETWORKS,
    ),
    "classifier: away from the class": (of_gradient(lambda c, y, scale: (c, y, -scale)), SAMPLES),
    "classifier: scale left out": (of_gradient(lambda c, y, scale: (c, y, 1.0)), SAMPLES),
    "classifier: another class": (of_gradient(lambda c, y, scale: (c, (y + 1) % 4, scale)), SAMPLES),
    "classifier: t off by one": (of_gradient(lambda c, y, scale: (lambda x, t: c(x, t + 1), y, scale)), SAMPLES),
    "classifier: variance left out": (swap(reverse, "ancestral_step", without_variance), SAMPLES),
    "classifier: ddpm shifts before the limit": (swap(reverse, "ancestral_step", before_clipping), SAMPLES),
    "classifier: the guided x_0 is limited": (swap(samplers, "guided_by_classifier", limited_again), SAMPLES),
    "classifier: eps shifted by sqrt(alpha_bar)": (
        swap(
            classifier_guidance,
            "extract",
            lambda f: lambda table, t: torch.sqrt(1 - f(table, t) ** 2),
        ),
        SAMPLES,
    ),
    "classifier: the remembered x_0 is not limited": (
        swap(classifier_guidance, "limited", lambda _: lambda config, x_0: x_0),
        SAMPLES,
    ),
}
