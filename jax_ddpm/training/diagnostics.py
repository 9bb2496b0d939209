"""Looks at a trained network: what it predicts on the way, which t are hard for it, what it may have memorised."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jax_ddpm import diffusion, report, rng
from jax_ddpm.data import ImageData, to_float, to_uint8
from jax_ddpm.schedules import schedule_tables
from jax_ddpm.spec.diffusion_config import DiffusionConfig
from jax_ddpm.spec.run_config import RunConfig

BINS = np.linspace(-1.525, 1.525, 62)  # edges, so that -1, 0 and 1 are middles; what lies outside counts to the ends
LOSS_POINTS = 20  # timesteps at which the loss is taken
LOSS_IMAGES = 64
NEIGHBOURS = 5
HELD_OUT = 100  # held-out images whose distance to the training images is the measure for that of samples
COMPARED = 2**28  # bytes of training images, at most, that are compared


def predict_x_0(network: nnx.Module, config: DiffusionConfig, x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The x_0 that the network sees in states (F, N, H, W, C) at timesteps (F,); float32 of the same shape."""
    graph, state = nnx.split(network)
    tables = schedule_tables(config, np.float32)

    @jax.jit
    def run(state, x_t, t):
        network = nnx.merge(graph, state)

        def one(frame):
            x, t = frame
            ts = jnp.full(len(x), t)
            prediction = network(x, ts)[..., : x.shape[-1]]  # a learned variance stands behind the prediction
            return diffusion.predicted_x_0(tables, config.objective, x, ts, prediction)

        return lax.map(one, (x_t, t))

    return np.asarray(run(state, jnp.asarray(x_t, jnp.float32), jnp.asarray(t, jnp.int32)))


def data_numbers(
    network: nnx.Module, config: RunConfig, images: ImageData, samples: np.ndarray, at_most: int
) -> dict[str, np.ndarray]:
    """What needs the data: the loss by t, the pixel values' distribution, the training images nearest to samples.

    samples: uint8 (N, H, W, C); at_most: how many images the network may see at once.
    """
    held_out = images.validation if len(images.validation) else images.train
    t, losses = loss_by_t(network, config, np.asarray(held_out[: min(LOSS_IMAGES, at_most)]))
    train = images.train[: max(1, COMPARED // images.train[0].nbytes)]
    indices, distances = report.nearest(samples, train, NEIGHBOURS)
    numbers = {
        "loss_t": t,
        "loss_by_t": losses,
        "data_shares": shares(to_float(images.train[:2000])),
        "nearest_index": indices,
        "nearest_distance": distances,
        "nearest_images": np.stack([train[row] for row in indices]),
        "num_compared": np.int64(len(train)),
        "num_train": np.int64(len(images.train)),
        "num_held_out": np.int64(len(images.validation)),
    }
    if len(images.validation):
        numbers["held_out_distance"] = report.nearest(images.validation[:HELD_OUT], train)[1][:, 0]
    return numbers


def loss_by_t(network: nnx.Module, config: RunConfig, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and the mean loss of images (N, H, W, C), N up to the batch size, at each; with the validation's noise.

    The plain mean squared error, whatever weights the training gives it.
    """
    images = images[: config.training.batch_size]
    graph, state = nnx.split(network)
    d, tables = config.diffusion, schedule_tables(config.diffusion, np.float32)
    t = np.unique(np.round(np.linspace(0, d.timesteps - 1, LOSS_POINTS)).astype(np.int32))
    key = rng.key(config.training.seed, rng.VALIDATION, rng.NOISE, 0)
    noise = rng.normal(key, (config.training.batch_size, *images.shape[1:]))[: len(images)]

    @jax.jit
    def run(state, x_0, noise, t):
        network = nnx.merge(graph, state)
        return lax.map(lambda t: diffusion.loss(tables, d.objective, network, x_0, jnp.full(len(x_0), t), noise), t)

    return t, np.asarray(run(state, to_float(images), noise, t))


def shares(x: np.ndarray) -> np.ndarray:
    """Which share of the values of x lies in each of BINS."""
    return np.histogram(np.clip(x, BINS[0], BINS[-1]), BINS)[0] / x.size


def forward_strip(images: np.ndarray, config: RunConfig, columns: int) -> tuple[np.ndarray, list[int]]:
    """uint8 (rows, columns, H, W, C): each image, then q(x_t | x_0) at growing t; and these t."""
    d = config.diffusion
    tables = schedule_tables(d, np.float32)
    ts = sorted({round(t) for t in np.linspace(0, d.timesteps - 1, columns)[1:]} or {0})
    x_0 = jnp.asarray(to_float(images))
    noise = rng.normal(rng.key(config.training.seed, rng.NOISE, 0), x_0.shape)
    noisy = [diffusion.q_sample(tables, x_0, jnp.full(len(images), t), noise) for t in ts]
    return np.stack([images, *(to_uint8(np.asarray(x)) for x in noisy)], axis=1), ts
