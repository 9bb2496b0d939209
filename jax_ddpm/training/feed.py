"""Batches on their way to the devices, how many steps run per dispatch, and the held-out images.

All scheduling that is particular to CPUs stands here.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jax_ddpm import ops, unets
from jax_ddpm.data import batch_indices
from jax_ddpm.spec.network_config import NetworkConfig
from jax_ddpm.spec.run_config import OutputConfig, RunConfig
from jax_ddpm.training.state import TrainState
from jax_ddpm.training.step import make_validation

ON_DEVICE = 2 * 2**30  # bytes of images up to which the whole data set lives on the devices
AT_ONCE = 10  # steps of one dispatch; what the host does for a dispatch takes milliseconds
PATIENCE = 0.5  # seconds that a dispatch of several steps may take on a CPU: the bar and Ctrl-C wait for one or two


def on_cpu() -> bool:
    """Whether JAX computes on CPUs."""
    return jax.default_backend() == "cpu"


def fast_in_loops(config: NetworkConfig) -> bool:
    """Whether a network's training step is as fast inside a loop of XLA's as outside.

    On CPUs that holds only for the convolutions of `jax_ddpm.layers` by their CPU routes; others' gradients are some
    hundred times slower in a loop. A registered network may have others.
    """
    return not on_cpu() or (ops.uses_cpu_routes() and config.name in unets.PACKAGED)


class Feed:
    """Gives `dispatch` its next steps: uint8 images on the devices, and which of them make each batch.

    A small data set is put there once and only indices travel; of a large one the images of the next dispatch.
    """

    def __init__(self, images: np.ndarray, config: RunConfig, mesh: Mesh):
        self.images, self.config = images, config
        self.on_cpu = on_cpu()
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.by_image = NamedSharding(mesh, PartitionSpec(None, "data"))
        self.resident = jax.device_put(np.asarray(images), self.everywhere) if images.nbytes <= ON_DEVICE else None
        several = fast_in_loops(config.network) and not (self.on_cpu and self.resident is None)
        self.steps_per_dispatch = (AT_ONCE if self.on_cpu else even_share(AT_ONCE, config.output)) if several else 1
        self.unroll_accumulation = not fast_in_loops(config.network)
        """For `make_train_step`: compile the parts of an accumulated batch one after another, not as a loop."""
        self.at_once = 1 if self.on_cpu else self.steps_per_dispatch
        """How many steps the next dispatch is to run: on a CPU as many as PATIENCE allows."""
        self.last: tuple[float, int] | None = None  # on a CPU: when the last dispatch began, and its steps

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

    def run(self, dispatch: Callable, state: TrainState, step: int, n: int) -> tuple[TrainState, Mapping]:
        """The n steps from `step` on by a `dispatch` of `make_dispatch`: (state, metrics).

        On a CPU it waits for the steps before: each dispatch under way would take memory of its own.
        """
        batches = self.batches(step, n)
        if self.on_cpu:
            jax.block_until_ready(state)
            now = time.perf_counter()
            if self.last is not None:
                seconds = (now - self.last[0]) / self.last[1]
                self.at_once = max(1, min(self.steps_per_dispatch, int(PATIENCE / seconds)))
            self.last = now, n
        return dispatch(state, *batches)

    def pause(self) -> None:
        """What comes before the next dispatch is not the last one's time."""
        self.last = None


def even_share(at_most: int, output: OutputConfig) -> int:
    """Steps of a dispatch that goes round as often whatever is left to do: nearly even parts of what is due most often.

    Of the default intervals, 500 steps or more, hardly anything is left over.
    """
    every = [e for e in (output.validate_every, output.checkpoint_every, output.sample_every) if e]
    shortest = min(every, default=at_most)
    return -(-shortest // -(-shortest // at_most))


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


def make_dispatch(train_step: Callable, steps_per_dispatch: int, all_rounds: bool | None = None) -> Callable:
    """dispatch(state, images (N, H, W, C), indices (K, B), n) -> (state, metrics of K steps): jitted, state donated.

    Runs the first n <= K = `steps_per_dispatch` steps, step i on images[indices[i]], in one device program; the
    metrics of steps beyond n are zero. all_rounds: go round K times whatever n is, steps beyond it changing nothing:
    on GPUs, at each turn of a loop whose end the compiler does not know, the device would wait for the host. By default
    on all devices but CPUs, where such steps would take their time and nothing waits.
    """
    all_rounds = not on_cpu() if all_rounds is None else all_rounds

    def one(state, images, indices, n):
        state, metrics = train_step(state, images[indices[0]])
        return state, {name: value[None] for name, value in metrics.items()}

    def several(state, images, indices, n):
        shapes = jax.eval_shape(train_step, state, images[indices[0]])[1]
        record = {name: jnp.zeros((steps_per_dispatch,), value.dtype) for name, value in shapes.items()}

        def body(i, carry):
            state, record = carry
            new, metrics = train_step(state, images[indices[i]])
            if all_rounds:
                new = jax.tree.map(partial(jnp.where, i < n), new, state)
                metrics = {name: jnp.where(i < n, value, 0) for name, value in metrics.items()}
            return new, {name: record[name].at[i].set(value) for name, value in metrics.items()}

        return lax.fori_loop(0, steps_per_dispatch if all_rounds else n, body, (state, record))

    return jax.jit(one if steps_per_dispatch == 1 else several, donate_argnums=0)
