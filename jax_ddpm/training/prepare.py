"""What a training run needs before its first step: images, network, devices, and everything that watches and writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm import data, rng, unets, weights
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import initial_weights
from jax_ddpm.spec.model_info import ModelInfo, describe
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training.checkpoint import Checkpoints
from jax_ddpm.training.feed import Feed, Validation, make_dispatch
from jax_ddpm.training.pictures import Pictures
from jax_ddpm.training.progress import Intervals, Progress, Saving
from jax_ddpm.training.run_folder import MetricsLog
from jax_ddpm.training.run_page import Page
from jax_ddpm.training.state import TrainState, create_state, num_parameters
from jax_ddpm.training.step import make_optimizer, make_train_step
from jax_ddpm.training.tensorboard import TensorBoard


@dataclass
class Run:
    """A training run: its settings and parts, and how far it is."""

    config: RunConfig
    folder: Path
    log: Callable[[str], None]
    images: data.ImageData
    info: ModelInfo
    graph: nnx.GraphDef
    feed: Feed
    dispatch: Callable
    validate: Validation
    total_steps: int
    intervals: Intervals
    checkpoints: Checkpoints
    saving: Saving
    metrics_log: MetricsLog
    progress: Progress
    pictures: Pictures
    page: Page
    tensorboard: TensorBoard
    start: int
    """The step that this process began at."""
    step: int
    """Optimiser steps done."""
    state: TrainState
    best: dict | None
    """{"step": ..., "validation_loss": ...} of the best validation; None before the first, or without --keep-best."""
    saved: int
    """The step of the newest checkpoint."""


def prepare(
    config: RunConfig,
    folder: Path,
    resume: bool,
    images: data.ImageData,
    network: nnx.Module,
    mesh: Mesh,
    checkpoints: Checkpoints,
    log: Callable[[str], None],
) -> Run:
    """A run at its start, or at its newest complete checkpoint if it is resumed; says what is about to be trained."""
    training, image_shape = config.training, images.train.shape[1:]
    steps_per_epoch, total_steps = lengths(config, len(images.train))
    optimizer = make_optimizer(training)
    dtype = np.float64 if training.precision == "float64" else np.float32
    graph, state = create_state(network, optimizer, training.ema, dtype)
    info = ModelInfo(network=config.network, image_shape=image_shape, diffusion=config.diffusion)
    log(describe(info, num_parameters(state.params)))
    num_train, num_held_out = len(images.train), len(images.validation)
    log(f"{num_train:,} training images, {num_held_out:,} held out; {total_steps:,} steps of {training.batch_size}")
    kind = f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({jax.default_backend()})"
    log(f"Devices: {kind}, {training.precision}")

    checkpoints.tidy()
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    start, record = 0, {"pending": [], "unwritten": [], "skipped_in_a_row": 0, "best": None}
    if resume and (found := checkpoints.newest(state)):
        start, state, record = found
        log(f"Going on from step {start:,}.")

    tensorboard = TensorBoard(folder, start, config.output.tensorboard, log)
    metrics_log = MetricsLog(folder, log)
    metrics_log.rewind(start, record["pending"], record["unwritten"])
    metrics_log.watch = tensorboard.row
    intervals = Intervals(config, steps_per_epoch, total_steps, num_held_out > 0)

    def timesteps(step: int) -> np.ndarray:
        key = rng.key(training.seed, rng.TIMESTEPS, step)
        return np.asarray(rng.timesteps(key, training.batch_size, config.diffusion.timesteps))

    progress = Progress(start, total_steps, config, metrics_log, steps_per_epoch, intervals, timesteps, log)
    progress.skipped_in_a_row = record["skipped_in_a_row"]
    feed = Feed(images.train, config, mesh)
    train_step = make_train_step(graph, optimizer, config, total_steps, mesh, feed.unroll_accumulation)
    return Run(
        config=config,
        folder=folder,
        log=log,
        images=images,
        info=info,
        graph=graph,
        feed=feed,
        dispatch=make_dispatch(train_step, feed.steps_per_dispatch),
        validate=Validation(graph, config, images.validation, mesh),
        total_steps=total_steps,
        intervals=intervals,
        checkpoints=checkpoints,
        saving=Saving(config, total_steps),
        metrics_log=metrics_log,
        progress=progress,
        pictures=Pictures(folder, graph, config, image_shape),
        page=Page(folder),
        tensorboard=tensorboard,
        start=start,
        step=start,
        state=state,
        best=record["best"],
        saved=start,
    )


def lengths(config: RunConfig, num_images: int) -> tuple[int, int]:
    """Steps of an epoch, and of the whole run."""
    steps_per_epoch = num_images // config.training.batch_size
    return steps_per_epoch, config.training.steps or config.training.epochs * steps_per_epoch


def make_mesh(batch_size: int) -> Mesh:
    """All devices in one row; UserError where they cannot share a batch evenly."""
    devices = jax.devices()
    if batch_size % len(devices):
        raise UserError(
            f"{len(devices)} devices cannot share {batch_size} images evenly: "
            f"expected a --batch-size (divided by --accumulate) that is a multiple of {len(devices)}."
        )
    return Mesh(np.asarray(devices), ("data",))


def load_images(config: RunConfig, log: Callable[[str], None]) -> data.ImageData:
    d = config.data
    images = data.load(
        d.dataset,
        d.image_size,
        data_dir=d.data_dir,
        manual_dir=d.manual_dir,
        cache_dir=d.cache_dir,
        validation_fraction=d.validation_fraction,
        log=log,
    )
    if config.output.keep_best and not len(images.validation):
        raise UserError("keep_best wants held-out images, and there are none: give a --validation-fraction above 0.")
    for note in images.notes:
        log(note)
    if len(images.train) < config.training.batch_size:
        raise UserError(
            f"batch_size = {config.training.batch_size}, but {d.dataset} has only {len(images.train)} training images. "
            f"Choose a --batch-size of at most {len(images.train)}."
        )
    return images


def make_network(config: RunConfig, image_shape: tuple[int, int, int]):
    """The network with its initial weights, or those of `init_from`."""
    dtype = jnp.bfloat16 if config.training.precision == "bfloat16" else None
    network = unets.build(config.network, image_shape[2], dtype)
    if config.training.init_from is None:
        weights.initialise(network, config.training.seed)
    else:
        weights.load_state_dict(network, initial_weights(config.training.init_from, config.network))
    return network
