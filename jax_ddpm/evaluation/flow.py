"""Bits per dimension of 8-bit images by the probability-flow ODE: Song et al. 2021 (score SDE), section 4.3.

The ODE carries the state x at t = 0 to a normal x_T, and the change of variables gives the density of x:
log p(x) = log N(x_T; 0, I) + integral of div f. Its time is tau = log sigma, sigma = sqrt((1 - alpha_bar) / alpha_bar),
in which f(x) = n (eps - n x), n = sqrt(1 - alpha_bar).

Images have levels, and x has noise. So x is drawn from q(x | x_0), and the decoder of the variational bound counts the
levels: -log2 P(x_0) <= E[log2 q(x | x_0) - log2 p(x)] + L_0.
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
from jax_ddpm.evaluation.likelihood import labels_of, term_bits
from jax_ddpm.objectives.discrete import by_timestep
from jax_ddpm.sampling.guidance import with_labels
from jax_ddpm.sampling.samplers import image_keys, noise_at, opened, sample_in_batches, shard, unpack_model
from jax_ddpm.schedules import Tables, schedule_tables
from jax_ddpm.spec.data_range import from_levels
from jax_ddpm.spec.diffusion_config import DiffusionConfig, require_timesteps
from jax_ddpm.spec.errors import require
from jax_ddpm.spec.likelihood import FlowLikelihood, check_levels
from jax_ddpm.spec.spacing import spaced_timesteps

Images = Float[Array, "b h w c"]


def velocity(
    tables: Tables, objective: str, predict: Callable, x: Images, t: Array, signs: Images
) -> tuple[Images, Float[Array, "b"]]:
    """f = dx / d tau at the timesteps t (B,), and the mean over the values of its divergence, estimated.

    The trace is Hutchinson's estimate, signs . (Jacobian signs), with signs +1 or -1: Song et al. 2021, eq. 40.
    """

    def eps(x):
        return diffusion.predicted_eps(tables, objective, x, t, diffusion.split_prediction(predict(x, t), x)[0])

    value, pull_back = jax.vjp(eps, x)
    n = extract(tables.sqrt_one_minus_alpha_bars, t)
    trace = n * signs * pull_back(signs)[0] - jnp.square(n)
    return n * (value - n * x), jnp.mean(trace, axis=(1, 2, 3))


def heun_steps(
    tables: Tables, objective: str, predict: Callable, x: Images, signs: Images, t: Array, t_next: Array
) -> tuple[Images, Float[Array, "b"]]:
    """x at the last timestep, and the integral of the mean divergence (B,). Heun's steps from t (K,) to t_next (K,)."""

    def body(carry, pair):
        x, integral = carry
        t, t_next = (jnp.full((x.shape[0],), number) for number in pair)
        log_sigma, log_sigma_next = (-jnp.asarray(tables.half_log_snr)[number] for number in pair)
        h = log_sigma_next - log_sigma
        f, divergence = velocity(tables, objective, predict, x, t, signs)
        f_next, divergence_next = velocity(tables, objective, predict, x + h * f, t_next, signs)
        return (x + h * (f + f_next) / 2, integral + h * (divergence + divergence_next) / 2), None

    return jax.lax.scan(body, (x, jnp.zeros_like(x[:, 0, 0, 0])), (t, t_next))[0]


@partial(jax.jit, static_argnames=("graph", "config", "dtype"))
def _start(graph, state, keys, images, labels, config, dtype):
    network, tables = with_labels(nnx.merge(graph, state), labels), schedule_tables(config, dtype)
    x_0, t = from_levels(images.astype(dtype), config.data_range), jnp.zeros(len(images), jnp.int32)
    noise = noise_at(keys, 0, x_0.shape[1:], dtype)
    decoder = term_bits(tables, config, network, x_0, t, noise)
    coins = jax.vmap(lambda k: jax.random.bernoulli(k, jnp.float32(0.5), x_0.shape[1:]))
    signs = 2 * coins(jax.vmap(lambda k: jax.random.fold_in(k, config.timesteps + 1))(keys)).astype(dtype) - 1
    return decoder, diffusion.q_sample(tables, x_0, t, noise), signs, jnp.mean(jnp.square(noise), axis=(1, 2, 3))


@partial(jax.jit, static_argnames=("graph", "config", "dtype"))
def _heun_steps(graph, state, x, signs, t, t_next, labels, config, dtype):
    tables = schedule_tables(config, dtype)
    predict = by_timestep(with_labels(nnx.merge(graph, state), labels), config)
    return heun_steps(tables, config.objective, predict, x, signs, t, t_next)


def flow_of_batch(
    network: nnx.Module,
    config: DiffusionConfig,
    seed: int,
    indices,
    images: Array,
    chain: np.ndarray,
    dtype=jnp.float32,
    labels: Array | None = None,
    progress: Callable | None = None,
) -> Float[np.ndarray, "b 2"]:
    """Bits per dimension of the decoder and of the state of one batch, images `indices` of the data: (B, 2).

    images: uint8 (B, H, W, C). chain: ascending timesteps from 0 to T - 1. labels: of these images, integers (B,) or
    floats (B, D).
    """
    keys = image_keys(seed, indices, rng.LIKELIHOOD)
    graph, state, keys, images, labels = shard(network, keys, images, labels)
    dtype, steps = jnp.dtype(dtype), len(chain) - 1
    every = steps if progress is None else max(1, steps // 50)
    decoder, x, signs, squares = _start(graph, state, keys, images, labels, config, dtype)
    integral = np.zeros(len(indices))
    for done in range(0, steps, every):
        t, t_next = chain[:-1][done : done + every], chain[1:][done : done + every]
        x, part = _heun_steps(graph, state, x, signs, t, t_next, labels, config, dtype)
        integral = integral + np.asarray(part, np.float64)
        if progress is not None:
            progress(min(done + every, steps))
    log_n = np.log(schedule_tables(config, np.float64).sqrt_one_minus_alpha_bars[0])
    ends = np.asarray(jnp.mean(jnp.square(x), axis=(1, 2, 3)) - squares, np.float64)
    return np.stack([np.asarray(decoder), (ends / 2 - log_n - integral) / math.log(2)], axis=1)


def flow_bits_per_dimension(
    model,
    images: Array,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    *,
    config: DiffusionConfig | None = None,
    dtype=jnp.float32,
    labels=None,
    progress: Callable | None = None,
) -> FlowLikelihood:
    """The likelihood of images by the probability-flow ODE in bits per dimension. Nothing is clipped in the ODE.

    The ODE is integrated by Heun's method between timesteps of the model, and the trace is estimated with one vector
    of random signs for each image, from the address (LIKELIHOOD, i, T + 1). The noise at t = 0 is that of
    `bits_per_dimension`.

    Args:
        model, images, seed, batch_size, config, dtype, labels: as in `bits_per_dimension`.
        num_steps: timesteps to visit, from 2 to T, even in log SNR. The network is evaluated and differentiated twice
            for each, and the error falls with the square of the number. Default: all T.
        progress: called with the number of steps done, about fifty times per batch.

    Raises:
        UserError: wrong images, or settings that do not fit, such as a schedule that ends without signal.
    """
    model = opened(model)
    network, config, image_shape = unpack_model(model, config, None)
    config.check()
    require_timesteps(config, "the likelihood by the ODE")
    images, alpha_bars = check_levels(images, image_shape), schedule_tables(config, np.float64).alpha_bars
    require(alpha_bars[-1] > 0, "last alpha_bar", 0, "expected more than 0, since x_T must depend on the image")
    num_steps = config.timesteps if num_steps is None else num_steps
    require(2 <= num_steps <= config.timesteps, "num_steps", num_steps, f"expected 2 to T = {config.timesteps}")
    chain = spaced_timesteps("logsnr", num_steps, alpha_bars)[::-1]

    of_images = labels_of(model, labels, len(images))

    def draw(indices):
        wanted = of_images.rows(indices).wanted
        return flow_of_batch(network, config, seed, indices, images[indices], chain, dtype, wanted, progress)

    return FlowLikelihood(*sample_in_batches(draw, len(images), batch_size).astype(np.float64).T)
