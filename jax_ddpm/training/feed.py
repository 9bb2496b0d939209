"""Sends training batches to the devices, chooses how many steps run per dispatch, and computes the validation loss.

All scheduling that depends on whether JAX runs on CPUs is in this file.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jax_ddpm import ops
from jax_ddpm.data import ShardedImages, batch_indices
from jax_ddpm.spec.network_config import BUILT_IN, NetworkConfig
from jax_ddpm.spec.run_config import OutputConfig, RunConfig
from jax_ddpm.training.placement import columns_here, put
from jax_ddpm.training.state import TrainState
from jax_ddpm.training.step import make_train_step, make_validation
from jax_ddpm.waiting import ticking

MAX_RESIDENT_BYTES = 2 * 2**30  # a data set up to this size is copied to the devices once
LANES = 128  # numbers to which a TPU pads the last axis of an array
STEPS_PER_DISPATCH = 10  # enough that the host's few milliseconds per dispatch are negligible
# The progress bar and Ctrl-C wait for up to two dispatches. So on a CPU this limits a dispatch of several steps.
MAX_DISPATCH_SECONDS_ON_CPU = 0.5
DEPTHWISE = frozenset({"annotated_convnext"})
"""Networks with depthwise convolutions."""


def on_cpu() -> bool:
    """Whether programs are for CPUs."""
    return ops.platform() == "cpu"


def fast_in_loops(config: NetworkConfig) -> bool:
    """Whether a network's training step is as fast inside an XLA loop as outside.

    On CPUs that holds for the convolutions of `jax_ddpm.layers` if they take their CPU routes. The gradients of other
    convolutions, such as depthwise ones or those of a network of the user's own, are about a hundred times slower in a
    loop.
    """
    return not on_cpu() or (ops.uses_cpu_routes() and config.name in BUILT_IN - DEPTHWISE)


def largest_dispatch(config: RunConfig, is_resident: bool) -> int:
    """The largest number of steps in a dispatch. is_resident: the data set is on the devices."""
    if not fast_in_loops(config.network) or (on_cpu() and not is_resident):
        return 1
    return STEPS_PER_DISPATCH if on_cpu() else dispatch_length(config.output, STEPS_PER_DISPATCH)


def rows_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which an image (H, W, C) of the data set is on the devices: itself, or a row of H W C numbers.

    A TPU pads the last two axes of arrays, to 128 numbers the last one, and would do so in a copy at each dispatch.
    """
    size = int(np.prod(image_shape))
    return (size,) if not on_cpu() and size % LANES == 0 else tuple(image_shape)


def sends_by_step(mesh: Mesh, is_resident: bool) -> bool:
    """Whether the images of each step are sent sharded by the batch, so that each device gets only its own part."""
    return mesh.size > 1 and not is_resident


class Feed:
    """Gives a dispatch its inputs: uint8 images on the devices, and the indices of each batch in them.

    A small data set is copied to the devices once; later only indices are sent. For a larger one, the images of each
    dispatch are sent, to each device its own; a thread reads those of the next dispatch in the meantime. With several
    processes, each reads and sends only the images of its own devices.
    """

    def __init__(
        self, images: np.ndarray | ShardedImages, config: RunConfig, mesh: Mesh, labels: np.ndarray | None = None
    ):
        """labels: class of each image, int32 (N,); None for a network without classes."""
        self.images, self.labels, self.config = images, labels, config
        self.on_cpu = on_cpu()
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.batch_sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
        self.resident = self.resident_labels = None
        if images.nbytes <= MAX_RESIDENT_BYTES:
            self.resident = put(self.as_rows(np.asarray(images)), self.replicated)
            self.resident_labels = None if labels is None else put(labels, self.replicated)
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self.read_ahead: tuple[tuple[int, int], Future] | None = None
        """Step and number of steps of the dispatch whose images are being read, and these images."""
        self.steps_per_dispatch = largest_dispatch(config, self.resident is not None)
        """The largest number of steps in a dispatch."""
        self.next_steps = 1 if self.on_cpu else self.steps_per_dispatch
        """Number of steps for the next dispatch. On a CPU: as many as MAX_DISPATCH_SECONDS_ON_CPU allows."""
        self.last_dispatch: tuple[float, int] | None = None
        """On a CPU: start time and number of steps of the last dispatch, if it is to be timed."""
        self.unroll_accumulation = not fast_in_loops(config.network)
        """Argument of `make_train_step`."""
        self.by_step = sends_by_step(mesh, self.resident is not None)
        """Argument of `make_dispatch`."""
        shape = self.steps_per_dispatch, config.training.batch_size
        self.columns = columns_here(self.batch_sharding, shape) if self.by_step else slice(None)
        """The part of each batch that this process reads."""

    def batches(self, step: int, n: int) -> tuple[jax.Array, ...]:
        """(images (N, *rows_shape), int32 indices (K, B), n) for the n steps from `step` on; the last row is repeated.

        With labels, these follow as a fourth: int32 (N,). If `by_step`: images (K, B, *rows_shape) and labels (K, B).
        """
        indices, images = self.indices(step, n), self.resident
        labels = () if self.labels is None else (self.resident_labels,)
        if self.by_step:
            rows = self.as_rows(self.read(step, n))
            part = rows.reshape(len(indices), -1, *rows.shape[1:])
            shape = *indices.shape, *rows.shape[1:]
            images = jax.make_array_from_process_local_data(self.batch_sharding, part, shape)
            labels = (put(self.labels[indices], self.batch_sharding),) if labels else ()
        elif images is None:
            images = jax.device_put(self.as_rows(self.read(step, n)), self.replicated)
            if labels:
                labels = (jax.device_put(self.labels[indices.ravel()], self.replicated),)
            indices = np.arange(indices.size, dtype=np.int32).reshape(indices.shape)
        return images, *put((indices, np.int32(n)), (self.batch_sharding, self.replicated)), *labels

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def as_rows(self, images: np.ndarray) -> np.ndarray:
        """Images (N, H, W, C) in the shape in which they are on the devices."""
        return images.reshape(len(images), *rows_shape(self.image_shape))

    def indices(self, step: int, n: int) -> np.ndarray:
        """Indices of the images of the n steps from `step` on, int32 (K, B); the last row is repeated."""
        training = self.config.training
        rows = [
            batch_indices(training.seed, step + min(i, n - 1), len(self.images), training.batch_size)
            for i in range(self.steps_per_dispatch)
        ]
        return np.stack(rows)

    def read(self, step: int, n: int) -> np.ndarray:
        """The images of `indices(step, n)`, uint8 (K * B, H, W, C). Begins to read those of the n steps after them.

        Only those of `columns`, if the other images are read by other processes.
        """
        if self.read_ahead is not None and self.read_ahead[0] == (step, n):
            images = self.read_ahead[1].result()
        else:
            images = self.images[self.indices(step, n)[:, self.columns].ravel()]
        following = self.indices(step + n, n)[:, self.columns].ravel()
        self.read_ahead = (step + n, n), self.reader.submit(lambda: self.images[following])
        return images

    def run(self, dispatch: Callable, state: TrainState, step: int, n: int) -> tuple[TrainState, Mapping]:
        """Run n steps from `step` on with `dispatch`, a function of `make_dispatch`. Returns (state, metrics).

        On a CPU this first waits for the previous dispatch: two at the same time would need twice the memory.
        """
        batches = self.batches(step, n)
        if self.on_cpu:
            jax.block_until_ready(state)
            now = time.perf_counter()
            if self.last_dispatch is not None:
                start, steps = self.last_dispatch
                limit = int(MAX_DISPATCH_SECONDS_ON_CPU / ((now - start) / steps))
                self.next_steps = max(1, min(self.steps_per_dispatch, limit))
            self.last_dispatch = now, n
        return dispatch(state, *batches)

    def reset_timer(self) -> None:
        """Do not count the time until the next dispatch as time of the last one."""
        self.last_dispatch = None


def dispatch_length(output: OutputConfig, limit: int) -> int:
    """Steps per fixed-length dispatch, at most `limit`, chosen to split the shortest interval almost evenly.

    Default intervals are ignored: they are at least 500 steps long, so any dispatch length wastes almost no steps.
    """
    intervals = (output.validate_every, output.evaluate_every, output.checkpoint_every, output.sample_every)
    shortest = min((steps for steps in (*intervals, output.power_ema_every) if steps), default=limit)
    return -(-shortest // -(-shortest // limit))


class Validation:
    """Mean loss of the held-out images. Timesteps and noise are the same in every validation."""

    def __init__(
        self,
        graph,
        config: RunConfig,
        images: np.ndarray | ShardedImages,
        mesh: Mesh,
        labels: np.ndarray | None = None,
    ):
        """labels: class of each image, int32 (M,); None for a network without classes."""
        self.images, self.labels, self.batch_size = images, labels, config.training.batch_size
        self.validate = make_validation(graph, config, mesh)
        self.batch_sharding = NamedSharding(mesh, PartitionSpec("data"))

    def __call__(self, state: TrainState) -> float:
        starts = range(0, len(self.images), self.batch_size)
        settings = {"unit": "batch", "leave": False, "delay": 5, "disable": jax.process_index() > 0}
        total, previous_total = 0.0, 0.0
        with tqdm(starts, "validating", **settings) as bar, ticking(bar):
            for batch_index, first in enumerate(bar):
                batch = self.images[first : first + self.batch_size]
                missing = self.batch_size - len(batch)
                mask = np.arange(self.batch_size) < len(batch)
                batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
                batch, mask = put((batch, mask), self.batch_sharding)
                labels = ()
                if self.labels is not None:
                    padded = np.pad(self.labels[first : first + self.batch_size], (0, missing))
                    labels = (put(padded, self.batch_sharding),)
                # Wait for the batch before the last: the bar counts finished batches, and the last one keeps running.
                jax.block_until_ready(previous_total)
                loss = self.validate(state.weights, state.buffers, batch, mask, np.int32(batch_index), *labels)
                previous_total, total = total, total + loss
        return float(total) / len(self.images)


def make_dispatch(
    train_step: Callable,
    steps_per_dispatch: int,
    fixed_length: bool | None = None,
    image_shape: tuple[int, ...] = (),
    by_step: bool = False,
) -> Callable:
    """Returns dispatch(state, images, indices (K, B), n, labels=None) -> (state, metrics).

    images: uint8 (N, H, W, C), or (N, H W C) if the image shape (H, W, C) is given, as of `rows_shape`.

    by_step: the images of step i are images[i], of an array (K, B, H, W, C) or (K, B, H W C), and its labels labels[i].

    One device program runs n <= K = `steps_per_dispatch` steps, step i on images[indices[i]] and labels[indices[i]]. It
    is jitted, and the state is donated. Each metric is an array (K,), 0 after the first n.

    fixed_length: always loop K times and discard the steps after n, because a dynamic loop bound makes a GPU
    synchronise with the host at every iteration. Default: False on CPUs, where the discarded steps would cost time and
    a dynamic bound costs nothing; True elsewhere.
    """
    fixed_length = not on_cpu() if fixed_length is None else fixed_length

    def step_on(state, rows, images, labels):
        batch = images[rows]
        if image_shape:
            batch = batch.reshape(len(batch), *image_shape)
        return train_step(state, batch) if labels is None else train_step(state, batch, labels[rows])

    def rows_of(indices, i):
        return i if by_step else indices[i]

    def single_step(state, images, indices, n, labels=None):
        state, metrics = step_on(state, rows_of(indices, 0), images, labels)
        return state, {name: value[None] for name, value in metrics.items()}

    def multi_step(state, images, indices, n, labels=None):
        shapes = jax.eval_shape(step_on, state, rows_of(indices, 0), images, labels)[1]
        buffer = {name: jnp.zeros((steps_per_dispatch,), value.dtype) for name, value in shapes.items()}

        def body(i, carry):
            state, buffer = carry
            new, metrics = step_on(state, rows_of(indices, i), images, labels)
            if fixed_length:
                new = jax.tree.map(partial(jnp.where, i < n), new, state)
                metrics = {name: jnp.where(i < n, value, 0) for name, value in metrics.items()}
            return new, {name: buffer[name].at[i].set(value) for name, value in metrics.items()}

        return lax.fori_loop(0, steps_per_dispatch if fixed_length else n, body, (state, buffer))

    return jax.jit(single_step if steps_per_dispatch == 1 else multi_step, donate_argnums=0)


def make_program(
    graph,
    optimizer: optax.GradientTransformationExtraArgs,
    config: RunConfig,
    total_steps: int,
    mesh: Mesh,
    image_shape: tuple[int, ...],
    is_resident: bool = True,
) -> Callable:
    """The program that training runs: a dispatch, as of `make_dispatch`, of the largest number of steps.

    image_shape: (H, W, C). is_resident: the data set is on the devices.
    """
    train_step = make_train_step(graph, optimizer, config, total_steps, mesh, not fast_in_loops(config.network))
    steps, by_step = largest_dispatch(config, is_resident), sends_by_step(mesh, is_resident)
    return make_dispatch(train_step, steps, image_shape=image_shape, by_step=by_step)


def program_inputs(
    config: RunConfig, mesh: Mesh, num_images: int, image_shape: tuple[int, int, int]
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes, dtypes and shardings of what `Feed.batches` returns for a data set of N images (H, W, C)."""
    is_resident = num_images * int(np.prod(image_shape)) <= MAX_RESIDENT_BYTES
    steps, batch_size = largest_dispatch(config, is_resident), config.training.batch_size
    replicated, by_image = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "data"))

    def array(shape, dtype, sharding=replicated):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    batches, sharding = ((num_images if is_resident else steps * batch_size),), replicated
    if sends_by_step(mesh, is_resident):
        batches, sharding = (steps, batch_size), by_image
    images = array((*batches, *rows_shape(image_shape)), np.uint8, sharding)
    labels = (array(batches, np.int32, sharding),) if config.training.conditional else ()
    return images, array((steps, batch_size), np.int32, by_image), array((), np.int32), *labels
