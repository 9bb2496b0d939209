"""Batches on their way to the devices, and the held-out images on theirs."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jax_ddpm.config import RunConfig
from jax_ddpm.data import batch_indices
from jax_ddpm.training.state import TrainState
from jax_ddpm.training.step import make_validation

ON_DEVICE = 2 * 2**30  # bytes of images up to which the whole data set lives on the devices


class Feed:
    """What `dispatch` needs for its next steps: uint8 images on the devices, and which of them make each batch.

    A small data set is put there once and only indices travel; of a large one the images of the next dispatch.
    """

    def __init__(self, images: np.ndarray, config: RunConfig, mesh: Mesh):
        self.images, self.config = images, config
        # On the CPU one step at a time: XLA's convolution gradients are very slow inside a loop there.
        self.steps_per_dispatch = 1 if jax.default_backend() == "cpu" else 10
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.by_image = NamedSharding(mesh, PartitionSpec(None, "data"))
        self.resident = jax.device_put(np.asarray(images), self.everywhere) if images.nbytes <= ON_DEVICE else None

    def batches(self, step: int, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images (N, H, W, C), int32 indices (K, B) of n steps from `step` on, rows beyond n like the last; n."""
        training = self.config.training
        rows = [
            batch_indices(training.seed, step + min(i, n - 1), len(self.images), training.batch_size)
            for i in range(self.steps_per_dispatch)
        ]
        indices = np.stack(rows)
        images = self.resident
        if images is None:
            images = jax.device_put(self.images[indices.ravel()], self.everywhere)
            indices = np.arange(indices.size, dtype=np.int32).reshape(indices.shape)
        return images, *jax.device_put((indices, np.int32(n)), (self.by_image, self.everywhere))

    def wait_for(self, state) -> None:
        """On a CPU, wait until the steps before have made it: each step under way would take memory of its own."""
        if jax.default_backend() == "cpu":
            jax.block_until_ready(state)


class Validation:
    """Mean loss of the held-out images, at timesteps and noise that stay the same over the training."""

    def __init__(self, graph, config: RunConfig, images: np.ndarray, mesh: Mesh):
        self.images, self.batch_size = images, config.training.batch_size
        self.validate = make_validation(graph, config)
        self.by_image = NamedSharding(mesh, PartitionSpec("data"))

    def __call__(self, state: TrainState) -> float:
        starts = range(0, len(self.images), self.batch_size)
        total, before = 0.0, 0.0
        for number, first in enumerate(tqdm(starts, "validating", unit="batch", leave=False, delay=5)):
            batch = self.images[first : first + self.batch_size]
            missing = self.batch_size - len(batch)
            mask = np.arange(self.batch_size) < len(batch)
            batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
            batch, mask = jax.device_put((batch, mask), self.by_image)
            jax.block_until_ready(before)  # one batch is under way meanwhile; the bar tells the truth
            before, total = total, total + self.validate(state.weights, state.buffers, batch, mask, np.int32(number))
        return float(total) / len(self.images)
