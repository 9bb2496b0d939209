"""Guidance: one prediction from that for a label and that for no label, or from those of two models.

The network's own prediction is guided, before it is limited: eps, x_0 or v. At one x_t each of them is an affine
function of the others, and the two weights of plain guidance add up to 1: it does not matter which is guided.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.labels import Labels
from torch_ref.diffusion import split_prediction
from torch_ref.dtypes import float_time
from torch_ref.objectives.discrete import by_timestep


def plain(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Ho & Salimans 2022, eq. 6, whose w is guidance - 1. 1: the conditional prediction, 0: the unconditional one."""
    return unconditional + guidance * (conditional - unconditional)


def rescaled(guided: Tensor, conditional: Tensor, rescale: float) -> Tensor:
    """Lin et al. 2023, section 3.4: a guided prediction with the standard deviation of the conditional one.

    rescale: phi, from 0 (unchanged) to 1 (the same standard deviation), of each image.
    """
    std, guided_std = (torch.std(x, dim=(1, 2, 3), correction=0, keepdim=True) for x in (conditional, guided))
    factor = std / torch.where(guided_std > 0, guided_std, 1)  # eq. 15
    return rescale * (factor * guided) + (1 - rescale) * guided  # eq. 16


def is_guided(interval: tuple[int, int], t: Tensor) -> Tensor:
    """Whether t is in the interval, whose ends belong to it: Kynkaanniemi et al. 2024, in timesteps."""
    first, last = interval
    return ((first <= t) & (t <= last)).reshape(-1, 1, 1, 1)


def guided_prediction(
    sampler: SamplerConfig, x_t: Tensor, t: Tensor, conditional: Tensor, unconditional: Tensor
) -> Tensor:
    """One prediction from two, by the guidance of the sampler.

    Args:
        x_t: states (B, C, H, W).
        t: integers (B,).
        conditional: of the network, for the labels.
        unconditional: of the network without labels; for autoguidance (Karras et al. 2024) that of a weaker
            model.

    Returns:
        A prediction of the shape of `conditional`. A learned variance is that of `conditional`.
    """
    prediction, v = split_prediction(conditional, x_t)
    other, _ = split_prediction(unconditional, x_t)
    guided = plain(prediction, other, sampler.guidance)
    if sampler.guidance_rescale > 0:
        guided = rescaled(guided, prediction, sampler.guidance_rescale)
    if sampler.guidance_interval is not None:
        guided = torch.where(is_guided(sampler.guidance_interval, t), guided, prediction)
    return guided if v is None else torch.cat([guided, v], dim=1)


def guided_predict(
    network: nn.Module,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    labels: Labels | None = None,
    guide: nn.Module | None = None,
) -> Callable:
    """predict(x, t) for `reverse_process`: the network with labels, guided as the sampler's settings say.

    t are integers in [0, T), whatever the network receives (`t_input`). predict(x, t, x_self_cond=x_0) gives x_0 to the
    networks with self-conditioning (`self_conditioned`).

    Both predictions come from one call, of a batch of two halves: x with labels, and x without. With a guide they come
    from a call of each model. Without guidance there is a single prediction.

    Args:
        network: (x, t) -> prediction, or (x, t, labels) -> prediction.
        labels: of the images, from `spec.labels.labels_of_images`. None: the network takes none.
        guide: a weaker model, in place of the network without labels.
    """
    labels, network = labels or Labels(), by_timestep(accepting_x_0(network), config)
    guide = guide if guide is None else by_timestep(accepting_x_0(guide), config)
    if sampler.guidance == 1:
        return with_labels(network, labels.wanted)
    return always_guided(network, sampler, labels, guide)


def always_guided(network: Callable, sampler: SamplerConfig, labels: Labels, guide: Callable | None) -> Callable:
    """predict(x, t) of a network and perhaps a guide, from `by_timestep`: guided even if the weight is 1.

    Both see the same x_self_cond if they take it: the last x_0 that was predicted with guidance.

    The weight may be a tensor, float ().
    """
    conditional = with_labels(network, labels.wanted)

    def predict(x, t, **given):
        if guide is not None:
            predictions = (each(x, t, **given) for each in (conditional, with_labels(guide, labels.of_guide)))
            return guided_prediction(sampler, x, t, *predictions)
        given = {name: torch.cat([value, value]) for name, value in given.items()}
        both_labels = torch.cat([labels.wanted, labels.none])
        both = network(torch.cat([x, x]), twice(t), labels=both_labels, **given)
        return guided_prediction(sampler, x, t, both[: x.shape[0]], both[x.shape[0] :])

    return predict


def twice(t: Tensor) -> Tensor:
    """The times of both halves of a batch."""
    both = torch.cat([t, t])
    return float_time(both) if both.is_floating_point() else both


def with_labels(network: nn.Module, labels: Tensor | None) -> Callable:
    """The network as (x, t) -> prediction, for these labels. None: the network itself."""
    return network if labels is None else lambda x, t, **given: network(x, t, labels=labels, **given)


def self_conditioned(*networks: nn.Module | None) -> bool:
    """Whether one of the networks is called as network(x, t, x_self_cond=x_0) with the last predicted x_0.

    Such a network has an attribute self_condition that is True (Chen et al. 2023).
    """
    return any(getattr(network, "self_condition", False) for network in networks)


def accepting_x_0(network: Callable) -> Callable:
    """The network, called with x_self_cond: one without self-conditioning ignores it."""
    if self_conditioned(network):
        return network
    return lambda x, t, x_self_cond=None, **others: network(x, t, **others)
