"""Analysis of a trained network: predicted x_0 along the reverse process, loss by t, nearest training images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jax_ddpm import report, rng
from jax_ddpm.data import ImageData, to_float, to_uint8
from jax_ddpm.objectives import make_objective
from jax_ddpm.objectives.figures import even_levels
from jax_ddpm.sampling.guidance import guided_predict
from jax_ddpm.sampling.samplers import ANCESTRAL
from jax_ddpm.spec.data_range import from_data_range, to_data_range
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig
from jax_ddpm.spec.labels import Labels
from jax_ddpm.spec.run_config import RunConfig

BIN_EDGES = np.linspace(-1.525, 1.525, 62)  # -1, 0 and 1 are bin centres; values outside go into the end bins
NUM_HISTOGRAM_IMAGES = 2000
NUM_LOSS_LEVELS = 20
NUM_LOSS_IMAGES = 64
NUM_NEIGHBOURS = 5
NUM_HELD_OUT = 100  # held-out images; their distance to the training images is the baseline for the samples' distance
MAX_COMPARED_BYTES = 2**28  # largest total size of the training images that are compared with samples


def predict_x_0(
    network: nnx.Module,
    config: DiffusionConfig,
    x_t: np.ndarray,
    level: np.ndarray,
    sampler: SamplerConfig = ANCESTRAL,
    labels: Labels | None = None,
) -> np.ndarray:
    """The predicted x_0 for states x_t (F, N, H, W, C) at noise levels (F,): float32, the same shape.

    sampler: its guidance. labels: of the N images; None for a network without classes.
    """
    graph, state = nnx.split(network)
    objective = make_objective(config)

    @jax.jit
    def run(state, x_t, level):
        predict = guided_predict(nnx.merge(graph, state), config, sampler, labels)

        def one(frame):
            x, level = frame
            level = jnp.full(len(x), level)
            return objective.predicted_x_0(x, level, predict(*objective.network_input(x, level)))

        return lax.map(one, (x_t, level))

    return np.asarray(run(state, jnp.asarray(x_t, jnp.float32), jnp.asarray(level)))


def data_statistics(
    network: nnx.Module,
    config: RunConfig,
    images: ImageData,
    samples: np.ndarray,
    max_batch: int,
    edges: np.ndarray = BIN_EDGES,
) -> dict[str, np.ndarray]:
    """The numbers that need the data set: loss by t, histogram of the pixel values, nearest training images.

    samples: uint8 (N, H, W, C). max_batch: largest batch for the network. edges: of the histogram's bins.
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
        "data_shares": bin_fractions(to_float(images.train[:NUM_HISTOGRAM_IMAGES]), edges),
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
    """(level (K,), loss (K,)): the mean loss of images uint8 (N, H, W, C) at each of K noise levels.

    The loss is the plain mean squared error, without further weights. Uses at most a batch of the images, with the
    noise of the first validation batch. labels: int32, of at least these images; None for a network without classes.
    """
    images = images[: config.training.batch_size]
    labels = None if labels is None else labels[: len(images)]
    graph, state = nnx.split(network)
    objective, levels = make_objective(config.diffusion), even_levels(config.diffusion, NUM_LOSS_LEVELS)
    key = rng.key(config.training.seed, rng.VALIDATION, rng.NOISE, 0)
    noise = rng.normal(key, (config.training.batch_size, *images.shape[1:]))[: len(images)]

    @jax.jit
    def run(state, x_0, noise, levels, labels=None):
        network = nnx.merge(graph, state)
        if labels is not None:
            network = partial(network, labels=labels)
        return lax.map(lambda level: objective.loss(network, x_0, jnp.full(len(x_0), level), noise), levels)

    x_0 = to_data_range(to_float(images), config.diffusion.data_range)
    return levels, np.asarray(run(state, x_0, noise, levels, labels))


def bin_edges(images: np.ndarray) -> np.ndarray:
    """Edges of bins of pixel values, for images uint8 (N, H, W, C) and samples of them.

    If the images have 16 to 60 values, such as the 17 of digits, each value has a bin. With narrower bins, some would
    hold samples but never data. Else BIN_EDGES.
    """
    values = np.unique(to_float(images))
    if not 16 <= len(values) <= 60:
        return BIN_EDGES
    width = np.diff(values).mean()
    below = np.arange(values[0] - width / 2, BIN_EDGES[0], -width)[::-1]
    above = np.arange(values[-1] + width / 2, BIN_EDGES[-1], width)
    return np.concatenate([below, (values[1:] + values[:-1]) / 2, above])


def bin_fractions(x: np.ndarray, edges: np.ndarray = BIN_EDGES) -> np.ndarray:
    """The fraction of the values of x in each of the K bins between K + 1 edges, (K,)."""
    return np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] / x.size


def forward_process(images: np.ndarray, config: RunConfig, columns: int) -> tuple[np.ndarray, list]:
    """(uint8 (N, columns, H, W, C), levels): each of N images, followed by its noisy versions at increasing levels."""
    objective, levels = make_objective(config.diffusion), forward_levels(config.diffusion, columns - 1)
    data_range = config.diffusion.data_range
    x_0 = jnp.asarray(to_data_range(to_float(images), data_range))
    noise = rng.normal(rng.key(config.training.seed, rng.NOISE, 0), x_0.shape)
    noisy = [objective.noised(x_0, jnp.full(len(images), level), noise) for level in levels]
    return np.stack([images, *(to_uint8(from_data_range(np.asarray(x), data_range)) for x in noisy)], axis=1), list(
        levels
    )


def forward_levels(config: DiffusionConfig, count: int) -> np.ndarray:
    """At most `count` increasing noise levels up to the highest one, without that of t = 0."""
    if config.is_continuous:
        return even_levels(config, count)
    ts = np.linspace(0, config.timesteps - 1, count + 1)[1:]
    return np.asarray(sorted({round(t) for t in ts} or {0}))
