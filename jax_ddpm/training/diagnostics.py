"""Analysis of a trained network: predicted x_0 along the reverse process, loss by t, nearest training images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jax_ddpm import diffusion, report, rng
from jax_ddpm.data import ImageData, to_float, to_uint8
from jax_ddpm.sampling.guidance import guided_predict
from jax_ddpm.sampling.samplers import ANCESTRAL
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.labels import Labels
from jax_ddpm.spec.run_config import RunConfig

BIN_EDGES = np.linspace(-1.525, 1.525, 62)  # -1, 0 and 1 are bin centres; values outside go into the end bins
NUM_LOSS_TIMESTEPS = 20
NUM_LOSS_IMAGES = 64
NUM_NEIGHBOURS = 5
NUM_HELD_OUT = 100  # held-out images; their distance to the training images is the baseline for the samples' distance
MAX_COMPARED_BYTES = 2**28  # largest total size of the training images that are compared with samples


def predict_x_0(
    network: nnx.Module,
    config: DiffusionConfig,
    x_t: np.ndarray,
    t: np.ndarray,
    sampler: SamplerConfig = ANCESTRAL,
    labels: Labels | None = None,
) -> np.ndarray:
    """The predicted x_0 for states x_t (F, N, H, W, C) at timesteps t (F,): float32, the same shape.

    sampler: its guidance. labels: of the N images; None for a network without classes.
    """
    graph, state = nnx.split(network)
    tables = schedule_tables(config, np.float32)

    @jax.jit
    def run(state, x_t, t):
        predict = guided_predict(nnx.merge(graph, state), sampler, labels)

        def one(frame):
            x, t = frame
            ts = jnp.full(len(x), t)
            prediction = predict(x, ts)[..., : x.shape[-1]]  # further channels: the learned variance
            return diffusion.predicted_x_0(tables, config.objective, x, ts, prediction)

        return lax.map(one, (x_t, t))

    return np.asarray(run(state, jnp.asarray(x_t, jnp.float32), jnp.asarray(t, jnp.int32)))


def data_statistics(
    network: nnx.Module, config: RunConfig, images: ImageData, samples: np.ndarray, max_batch: int
) -> dict[str, np.ndarray]:
    """The numbers that need the data set: loss by t, histogram of the pixel values, nearest training images.

    samples: uint8 (N, H, W, C). max_batch: largest batch for the network.
    """
    held_out = images.validation if len(images.validation) else images.train
    labels = images.validation_labels if len(images.validation) else images.labels
    labels = labels if config.training.conditional else None
    t, losses = loss_by_t(network, config, np.asarray(held_out[: min(NUM_LOSS_IMAGES, max_batch)]), labels)
    train = images.train[: max(1, MAX_COMPARED_BYTES // images.train[0].nbytes)]
    indices, distances = report.nearest(samples, train, NUM_NEIGHBOURS)
    numbers = {
        "loss_t": t,
        "loss_by_t": losses,
        "data_shares": bin_fractions(to_float(images.train[:2000])),
        "nearest_index": indices,
        "nearest_distance": distances,
        "nearest_images": np.stack([train[row] for row in indices]),
        "num_compared": np.int64(len(train)),
        "num_train": np.int64(len(images.train)),
        "num_held_out": np.int64(len(images.validation)),
    }
    if len(images.validation):
        numbers["held_out_distance"] = report.nearest(images.validation[:NUM_HELD_OUT], train)[1][:, 0]
    return numbers


def loss_by_t(
    network: nnx.Module, config: RunConfig, images: np.ndarray, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(t (K,), loss (K,)): the mean loss of images uint8 (N, H, W, C) at each of K timesteps.

    The loss is the plain mean squared error, without min-SNR weights. Uses at most a batch of the images, with the
    noise of the first validation batch. labels: int32, of at least these images; None for a network without classes.
    """
    images = images[: config.training.batch_size]
    labels = None if labels is None else labels[: len(images)]
    graph, state = nnx.split(network)
    d, tables = config.diffusion, schedule_tables(config.diffusion, np.float32)
    t = np.unique(np.round(np.linspace(0, d.timesteps - 1, NUM_LOSS_TIMESTEPS)).astype(np.int32))
    key = rng.key(config.training.seed, rng.VALIDATION, rng.NOISE, 0)
    noise = rng.normal(key, (config.training.batch_size, *images.shape[1:]))[: len(images)]

    @jax.jit
    def run(state, x_0, noise, t, labels=None):
        network = nnx.merge(graph, state)
        if labels is not None:
            network = partial(network, labels=labels)
        return lax.map(lambda t: diffusion.loss(tables, d.objective, network, x_0, jnp.full(len(x_0), t), noise), t)

    return t, np.asarray(run(state, to_float(images), noise, t, labels))


def bin_fractions(x: np.ndarray) -> np.ndarray:
    """The fraction of the values of x in each bin between BIN_EDGES, (61,)."""
    return np.histogram(np.clip(x, BIN_EDGES[0], BIN_EDGES[-1]), BIN_EDGES)[0] / x.size


def forward_process(images: np.ndarray, config: RunConfig, columns: int) -> tuple[np.ndarray, list[int]]:
    """(uint8 (N, columns, H, W, C), t): each of N images, followed by samples of q(x_t | x_0) at increasing t."""
    d = config.diffusion
    tables = schedule_tables(d, np.float32)
    ts = sorted({round(t) for t in np.linspace(0, d.timesteps - 1, columns)[1:]} or {0})
    x_0 = jnp.asarray(to_float(images))
    noise = rng.normal(rng.key(config.training.seed, rng.NOISE, 0), x_0.shape)
    noisy = [diffusion.q_sample(tables, x_0, jnp.full(len(images), t), noise) for t in ts]
    return np.stack([images, *(to_uint8(np.asarray(x)) for x in noisy)], axis=1), ts
