"""Bits per dimension of 8-bit images by the variational bound: Ho et al. 2020, eq. 5 and 13.

-log2 P(x_0) <= L_T + L_{T-1} + ... + L_0, divided by the number of values of an image. L_T compares q(x_T | x_0) with
the normal distribution. L_t compares the step from t to t - 1 with the posterior of the forward process. L_0 is the
decoder's: -log2 of the probability of the image's levels, computed from the state at t = 0.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from jax_ddpm.spec.batches import in_batches
from jax_ddpm.spec.diffusion_config import NO_SIGNAL, DiffusionConfig, require_timesteps
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.labels import Labels
from jax_ddpm.spec.likelihood import Bound, check_levels, strata, timesteps_in
from torch_ref import diffusion, rng
from torch_ref.diffusion import extract
from torch_ref.layouts import device_of, numpy_dtype
from torch_ref.objectives.discrete import by_timestep
from torch_ref.sampling.guidance import with_labels
from torch_ref.sampling.samplers import (
    ANCESTRAL,
    image_keys,
    labels_and_guide,
    noise_at,
    opened,
    tensors,
    unless_given,
    unpack_model,
)
from torch_ref.sampling.steps import clipped_x_0
from torch_ref.schedules import Tables, schedule_tables
from torch_ref.step import prepare_images


def prior_bits(tables: Tables, x_0: Tensor) -> Tensor:
    """L_T of each image (B,) in bits per dimension: the divergence of q(x_T | x_0) from N(0, I)."""
    alpha_bar = torch.as_tensor(tables.alpha_bars, device=x_0.device)[-1]
    nats = 0.5 * (alpha_bar * torch.square(x_0) - alpha_bar - torch.log1p(-alpha_bar))
    return torch.mean(nats, dim=(1, 2, 3)) / math.log(2)


def model_log_variance(tables: Tables, config: DiffusionConfig, t: Tensor, v: Tensor | None) -> Tensor:
    """log sigma_t^2 of p(x_{t-1} | x_t), (B, 1, 1, 1) or (B, C, H, W). v: the output for a learned variance.

    At t = 0, the variance "beta" is beta~ of t = 1, as in the code of Ho et al. 2020 and of Nichol & Dhariwal 2021.
    """
    if config.variance == "learned_range":
        return diffusion.learned_log_variance(tables, t, v)
    posterior = extract(tables.log_posterior_variance, t)
    if config.variance == "posterior":
        return posterior
    return torch.where(t.reshape(-1, 1, 1, 1) == 0, posterior, torch.log(extract(tables.betas, t)))


def term_bits(
    tables: Tables, config: DiffusionConfig, predict: Callable, x_0: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """L_t of each image in bits per dimension, for the x_t of this noise. t: (B,). predict: (x_t, t) -> prediction."""
    x_t = diffusion.q_sample(tables, x_0, t, noise)
    prediction = by_timestep(predict, config)(x_t, t)
    x_0_pred = clipped_x_0(tables, config, x_t, prediction, t)
    log_variance = model_log_variance(tables, config, t, diffusion.split_prediction(prediction, x_t)[1])
    log_variance = torch.broadcast_to(log_variance, x_0.shape)
    return diffusion.variational_bound(tables, x_0, x_t, t, x_0_pred, log_variance, config.data_range)


@torch.no_grad()
def terms_of_batch(
    network: nn.Module,
    config: DiffusionConfig,
    seed: int,
    indices,
    images: np.ndarray,
    t: np.ndarray,
    dtype=torch.float32,
    labels: Tensor | None = None,
    progress: Callable | None = None,
) -> np.ndarray:
    """L_t of one batch, images `indices` of the data, and L_T in the last column: (B, K + 1) in bits per dimension.

    images: uint8 (B, H, W, C). t: (B, K). labels: of these images, integers (B,) or floats (B, D). Image i takes its
    noise at t from the address (LIKELIHOOD, i, t).
    """
    keys, device = image_keys(seed, indices, rng.LIKELIHOOD), device_of(network)
    x_0 = prepare_images(torch.from_numpy(images).to(device), dtype, None, config.data_range)
    predict = with_labels(network, labels)
    tables, terms, every = schedule_tables(config, numpy_dtype(dtype)), [], max(1, t.shape[1] // 50)
    for done, column in enumerate(t.T, 1):
        noise = noise_at(keys, column, images.shape[1:], dtype).to(device)
        terms.append(term_bits(tables, config, predict, x_0, torch.from_numpy(column).long().to(device), noise))
        if progress is not None and done % every == 0:
            progress(done)
    return torch.stack([*terms, prior_bits(tables, x_0)], dim=1).cpu().numpy()


def drawn_timesteps(seed: int, num_images: int, edges: np.ndarray) -> np.ndarray:
    """One timestep in each range for each image, int32 (N, K): drawn at the address (LIKELIHOOD, i, T)."""
    keys, shape = image_keys(seed, np.arange(num_images), rng.LIKELIHOOD), (len(edges) - 1,)
    return timesteps_in(edges, rng.uniform(rng.fold_in(keys, int(edges[-1])), shape).numpy())


def labels_of(model, labels, num_images: int) -> Labels:
    """What the network gets as labels of N images whose likelihood is computed: no label, unless labels are given."""
    return labels_and_guide(model, unless_given(model, labels), num_images, ANCESTRAL, None)[0] or Labels()


def bits_per_dimension(
    model: nn.Module,
    images: np.ndarray,
    num_timesteps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    *,
    config: DiffusionConfig | None = None,
    dtype=torch.float32,
    labels=None,
    progress: Callable | None = None,
) -> Bound:
    """The variational bound of images in bits per dimension.

    Arguments are those of `jax_ddpm.evaluation.bits_per_dimension`: images are uint8 (N, H, W, C).
    """
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, None)
    config.check()
    require_timesteps(config, "the variational bound")
    images, edges = check_levels(images, image_shape), strata(config.timesteps, num_timesteps)
    tables = schedule_tables(config, np.float64)
    require(config.objective != "eps" or tables.alpha_bars[-1] > 0, "objective", config.objective, NO_SIGNAL)
    t, of_images = drawn_timesteps(seed, len(images), edges), labels_of(model, labels, len(images))

    def draw(indices):
        wanted = tensors(of_images, indices, device_of(network)).wanted
        return terms_of_batch(network, config, seed, indices, images[indices], t[indices], dtype, wanted, progress)

    terms = in_batches(draw, len(images), batch_size, torch.OutOfMemoryError).astype(np.float64)
    return Bound(edges, t, terms[:, :-1], terms[:, -1])
