"""Bits per dimension of 8-bit images by the variational bound: Ho et al. 2020, eq. 5 and 13.

-log2 P(x_0) <= L_T + L_{T-1} + ... + L_0, divided by the number of values of an image. L_T compares q(x_T | x_0) with
the normal distribution. L_t compares the step from t to t - 1 with the posterior of the forward process. L_0 is the
decoder's: -log2 of the probability of the image's levels, computed from the state at t = 0.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jax_ddpm import diffusion, rng
from jax_ddpm.arrays import Array
from jax_ddpm.diffusion import extract
from jax_ddpm.objectives.discrete import by_timestep
from jax_ddpm.sampling.guidance import with_labels
from jax_ddpm.sampling.samplers import (
    ANCESTRAL,
    image_keys,
    labels_and_guide,
    opened,
    sample_in_batches,
    shard,
    unless_given,
    unpack_model,
)
from jax_ddpm.sampling.steps import clipped_x_0
from jax_ddpm.schedules import Tables, schedule_tables
from jax_ddpm.spec.data_range import from_levels
from jax_ddpm.spec.diffusion_config import NO_SIGNAL, DiffusionConfig, require_timesteps
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.labels import Labels
from jax_ddpm.spec.likelihood import Bound, check_levels, strata, timesteps_in

Images = Float[Array, "b h w c"]


def prior_bits(tables: Tables, x_0: Images) -> Float[Array, "b"]:
    """L_T of each image in bits per dimension: the divergence of q(x_T | x_0) from N(0, I)."""
    alpha_bar = jnp.asarray(tables.alpha_bars)[-1]
    nats = 0.5 * (alpha_bar * jnp.square(x_0) - alpha_bar - jnp.log1p(-alpha_bar))
    return jnp.mean(nats, axis=(1, 2, 3)) / math.log(2)


def model_log_variance(tables: Tables, config: DiffusionConfig, t: Array, v: Images | None) -> Array:
    """log sigma_t^2 of p(x_{t-1} | x_t), (B, 1, 1, 1) or (B, H, W, C). v: the output for a learned variance.

    At t = 0, the variance "beta" is beta~ of t = 1, as in the code of Ho et al. 2020 and of Nichol & Dhariwal 2021.
    """
    if config.variance == "learned_range":
        return diffusion.learned_log_variance(tables, t, v)
    posterior = extract(tables.log_posterior_variance, t)
    if config.variance == "posterior":
        return posterior
    return jnp.where(t.reshape(-1, 1, 1, 1) == 0, posterior, jnp.log(extract(tables.betas, t)))


def term_bits(
    tables: Tables, config: DiffusionConfig, predict: Callable, x_0: Images, t: Array, noise: Images
) -> Float[Array, "b"]:
    """L_t of each image in bits per dimension, for the x_t of this noise. t: (B,). predict: (x_t, t) -> prediction."""
    x_t = diffusion.q_sample(tables, x_0, t, noise)
    prediction = by_timestep(predict, config)(x_t, t)
    x_0_pred = clipped_x_0(tables, config, x_t, prediction, t)
    log_variance = model_log_variance(tables, config, t, diffusion.split_prediction(prediction, x_t)[1])
    log_variance = jnp.broadcast_to(log_variance, x_0.shape)
    return diffusion.variational_bound(tables, x_0, x_t, t, x_0_pred, log_variance, config.data_range)


@partial(jax.jit, static_argnames=("graph", "config", "dtype"))
def _terms(graph, state, keys, images, t, labels, config, dtype):
    network, tables = with_labels(nnx.merge(graph, state), labels), schedule_tables(config, dtype)
    x_0 = from_levels(images.astype(dtype), config.data_range)

    def body(_, t):
        noise = rng.normal(jax.vmap(jax.random.fold_in)(keys, t), x_0.shape[1:], dtype)
        return None, term_bits(tables, config, network, x_0, t, noise)

    return jax.lax.scan(body, None, t.T)[1].T, prior_bits(tables, x_0)


def terms_of_batch(
    network: nnx.Module,
    config: DiffusionConfig,
    seed: int,
    indices,
    images: Array,
    t: Array,
    dtype=jnp.float32,
    labels: Array | None = None,
    progress: Callable | None = None,
) -> Float[np.ndarray, "b k"]:
    """L_t of one batch, images `indices` of the data, and L_T in the last column: (B, K + 1) in bits per dimension.

    images: uint8 (B, H, W, C). t: (B, K). labels: of these images, integers (B,) or floats (B, D). Image i takes its
    noise at t from the address (LIKELIHOOD, i, t).
    """
    keys = image_keys(seed, indices, rng.LIKELIHOOD)
    graph, state, keys, images, t, labels = shard(network, keys, images, t, labels)
    dtype, every = jnp.dtype(dtype), t.shape[1] if progress is None else max(1, t.shape[1] // 50)
    parts = []
    for done in range(0, t.shape[1], every):
        terms, prior = _terms(graph, state, keys, images, t[:, done : done + every], labels, config, dtype)
        parts.append(np.asarray(terms))
        if progress is not None:
            progress(min(done + every, t.shape[1]))
    return np.concatenate([*parts, np.asarray(prior)[:, None]], axis=1)


def drawn_timesteps(seed: int, num_images: int, edges: np.ndarray) -> np.ndarray:
    """One timestep in each range for each image, int32 (N, K): drawn at the address (LIKELIHOOD, i, T)."""
    keys, shape = image_keys(seed, np.arange(num_images), rng.LIKELIHOOD), (len(edges) - 1,)

    def draw(k):
        return jax.random.uniform(jax.random.fold_in(k, int(edges[-1])), shape, jnp.float32)

    return timesteps_in(edges, np.asarray(jax.jit(jax.vmap(draw))(keys)))


def labels_of(model, labels, num_images: int) -> Labels:
    """What the network gets as labels of N images whose likelihood is computed: no label, unless labels are given."""
    return labels_and_guide(model, unless_given(model, labels), num_images, ANCESTRAL, None)[0] or Labels()


def bits_per_dimension(
    model,
    images: Array,
    num_timesteps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    *,
    config: DiffusionConfig | None = None,
    dtype=jnp.float32,
    labels=None,
    progress: Callable | None = None,
) -> Bound:
    """The variational bound of images in bits per dimension.

    The model is the one that ancestral sampling with T steps draws from: the mean uses the predicted x_0, limited by
    `config.clip` ("x0" or "dynamic"), and the variance is `config.variance`. Image i takes its noise at t from the
    address (LIKELIHOOD, i, t). A pixel's probability below 1e-12 counts as 1e-12, as in the papers' code.

    Args:
        model: a `Model` from `load_model`, or an NNX module (x, t) -> prediction, which needs `config`.
        images: uint8 (N, H, W, C).
        num_timesteps: K, the timesteps to evaluate for each image, from 2 to T: one drawn in each of K ranges, which
            gives an unbiased estimate. Default: all T.
        seed: integer in [0, 2^32), for the noise and the drawn timesteps.
        batch_size: images at a time, at least 1. Halved if the memory of the device does not hold them.
        config: diffusion settings. Default: those of the `Model`.
        dtype: of the states x_t: float32, or float64 (needs jax_enable_x64).
        labels: of the images, as in `sample`. Default: no label, with a model that takes labels.
        progress: called with the number of timesteps done, about fifty times per batch.

    Raises:
        UserError: wrong images, or settings that do not fit.
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
        wanted = of_images.rows(indices).wanted
        return terms_of_batch(network, config, seed, indices, images[indices], t[indices], dtype, wanted, progress)

    terms = sample_in_batches(draw, len(images), batch_size).astype(np.float64)
    return Bound(edges, t, terms[:, :-1], terms[:, -1])
