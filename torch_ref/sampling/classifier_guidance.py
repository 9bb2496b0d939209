"""Classifier guidance: sampling towards the classes of a classifier of noisy images (Dhariwal & Nichol 2021)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.noisy_classifier import INFINITE
from torch_ref import diffusion
from torch_ref.diffusion import extract
from torch_ref.sampling.steps import clipped_x_0, limited
from torch_ref.schedules import Tables

Gradient = Callable[[Tensor, Tensor], Tensor]


def class_gradient(classifier: Callable, classes: Tensor, scale: float | Tensor) -> Gradient:
    """gradient(x_t, t) -> scale * the gradient of log p(y | x_t) with respect to x_t, (B, C, H, W).

    Args:
        classifier: (x_t, t) -> logits (B, K), t integers (B,) in [0, T).
        classes: y of each image, in [0, K).
        scale: s of Algorithm 1.
    """

    def log_probability(x, t):
        log_probabilities = torch.log_softmax(classifier(x, t), dim=-1)
        return torch.take_along_dim(log_probabilities, classes[:, None].long(), dim=-1).sum()

    def gradient(x_t, t):
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            return scale * torch.autograd.grad(log_probability(x_t, t), x_t)[0]

    return gradient


def guided_by_classifier(
    tables: Tables, config: DiffusionConfig, predict: Callable, gradient: Gradient
) -> tuple[DiffusionConfig, Callable]:
    """Algorithm 2, for every sampler but ddpm: settings and predict(x_t, t) -> x_0, for the sampler's step.

    As in guided-diffusion, the network's x_0 is limited first (`threshold`), and the guided one is not limited again.
    An x_0 that is given to a network with self-conditioning is limited. Raises UserError at zero terminal SNR.
    """
    if tables.alpha_bars[-1] == 0:
        raise UserError(INFINITE)

    def predict_x_0(x_t, t, **given):
        given = {name: limited(config, x_0) for name, x_0 in given.items()}
        x_0 = clipped_x_0(tables, config, x_t, predict(x_t, t, **given), t)
        eps = diffusion.predicted_eps(tables, "x0", x_t, t, x_0)
        eps = eps - extract(tables.sqrt_one_minus_alpha_bars, t) * gradient(x_t, t)  # eps-hat
        return diffusion.predicted_x_0(tables, "eps", x_t, t, eps)

    return replace(config, objective="x0", clip="state" if config.clip == "state" else "none"), predict_x_0
