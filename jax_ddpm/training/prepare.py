"""Everything a run needs before its first step: images, network, devices, and the objects that log and save."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jax_ddpm import data, report, rng, unets, weights
from jax_ddpm.objectives import make_objective
from jax_ddpm.spec.data_record import path_of
from jax_ddpm.spec.diffusion_config import about_sampler
from jax_ddpm.spec.ema_snapshots import SNAPSHOTS, remove_snapshots_after
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.labels import check_guidance
from jax_ddpm.spec.model_files import initial_weights
from jax_ddpm.spec.model_info import ModelInfo, describe
from jax_ddpm.spec.network_config import BUILT_IN
from jax_ddpm.spec.run_classes import check_takes_labels, describe_classes
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.spec.types import TF32_ON_CPUS
from jax_ddpm.training import fsdp
from jax_ddpm.training.checkpoint import Checkpoints
from jax_ddpm.training.evaluate import Evaluation
from jax_ddpm.training.feed import Feed, Validation, make_program
from jax_ddpm.training.pictures import Pictures
from jax_ddpm.training.placement import from_process_0, here
from jax_ddpm.training.progress import CheckpointPolicy, Intervals, Progress
from jax_ddpm.training.run_folder import MetricsLog
from jax_ddpm.training.run_page import Page
from jax_ddpm.training.state import TrainState, create_state, num_parameters
from jax_ddpm.training.step import make_optimizer
from jax_ddpm.training.trackers import Trackers, open_trackers
from jax_ddpm.unets.flax_layers import check_training


@dataclass
class Run:
    """A training run: its settings, its parts and its current state."""

    config: RunConfig
    folder: Path
    log: Callable[[str], None]
    images: data.ImageData
    info: ModelInfo
    graph: nnx.GraphDef
    feed: Feed
    dispatch: Callable
    validate: Validation
    evaluate: Evaluation | None
    """None without --evaluate-every."""
    total_steps: int
    intervals: Intervals
    checkpoints: Checkpoints
    checkpoint_policy: CheckpointPolicy
    metrics_log: MetricsLog
    progress: Progress
    pictures: Pictures
    page: Page
    trackers: Trackers
    start_step: int
    """The number of steps that were done when this process started."""
    step: int
    """Optimiser steps done."""
    state: TrainState
    best: dict | None
    """{"step": ..., "validation_loss": ...} of the best validation; None before the first, or without --keep-best."""
    saved_step: int
    """The step of the newest checkpoint."""
    announce: Callable[..., None]
    """For other processes. Called with the number of steps before each dispatch, with 0 and a part of the state before
    `part_here`, and with 0 after the last dispatch."""

    def part_here(self, part: str):
        """A part of the state, one of `fsdp.PARTS`, whole in this process."""
        tree = fsdp.part_of_state(self.state, part)
        arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
        if any(not array.is_fully_addressable and not array.is_fully_replicated for array in arrays):
            self.announce(0, part)
        return here(tree)

    def state_here(self) -> TrainState:
        """The state, readable in this process; in a training of one process it may be split over its devices."""
        readable = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(self.state) if isinstance(leaf, jax.Array))
        return self.state if readable else self.part_here("state")


def prepare(
    config: RunConfig,
    folder: Path,
    resume: bool,
    images: data.ImageData,
    network: nnx.Module,
    mesh: Mesh,
    checkpoints: Checkpoints,
    log: Callable[[str], None],
    announce: Callable[..., None] = lambda steps, part=None: None,
) -> Run:
    """A run at step 0, or at its newest undamaged checkpoint if it is resumed. Logs what will be trained.

    In a training of several processes this is for process 0.
    """
    training, image_shape = config.training, images.train.shape[1:]
    steps_per_epoch, total_steps = count_steps(config, len(images.train))
    optimizer = make_optimizer(training)
    dtype = np.float64 if training.precision == "float64" else np.float32
    graph, state = create_state(network, optimizer, training.ema, dtype, training.power_ema)
    labels, validation_labels, class_names = None, None, None
    if config.training.conditional:
        labels, validation_labels, class_names = images.labels, images.validation_labels, images.class_names
    info = ModelInfo(config.network, image_shape, config.diffusion, class_names=class_names)
    check_guidance(info, config.sampling, None)
    log(describe(info, num_parameters(state.params)))
    if config.diffusion.is_continuous:
        log(about_sampler(config.sampling, config.diffusion))
    if class_names is not None:
        log(describe_classes(config, class_names))
    num_train, num_held_out = len(images.train), len(images.validation)
    log(f"{num_train:,} training images, {num_held_out:,} held out")
    if about_channels := report.channel_note(image_shape[2]):
        log(f"Pictures: {about_channels}")
    log(f"{total_steps:,} steps, batch size {training.batch_size}")
    kind = f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({jax.default_backend()})"
    log(f"Devices: {kind}, {training.precision}")
    if training.precision == "tf32" and jax.default_backend() == "cpu":
        log(TF32_ON_CPUS)
    if training.fsdp:
        log(fsdp.describe(state, mesh))

    checkpoints.remove_incomplete()
    shardings = fsdp.state_shardings(state, mesh, training.fsdp)
    if not mesh.is_multi_process:
        state = jax.device_put(state, shardings)
    start, record = 0, {"pending": [], "unwritten": [], "skipped_in_a_row": 0, "best": None}
    if resume and (found := checkpoints.restore_newest(state)):
        start, state, record = found
        log(f"Resuming from step {start:,}.")
    if mesh.is_multi_process:
        from_process_0(np.int32(start), fsdp.replicated(mesh))
        state = from_process_0(state, shardings)

    remove_snapshots_after(folder, start)
    evaluates = config.output.evaluate_every and start < total_steps
    evaluate = Evaluation(config, images, info, graph, log) if evaluates else None
    metrics_log = MetricsLog(folder, log)
    trackers = open_trackers(config, folder, start, metrics_log.rows(), log)
    metrics_log.rewind(start, record["pending"], record["unwritten"])
    metrics_log.on_row = trackers.row
    intervals = Intervals(config, steps_per_epoch, total_steps, num_held_out > 0)

    if every := intervals.every_snapshot:
        widths, size = training.power_ema_widths, 4 * (num_parameters(state.params) + num_parameters(state.buffers))
        count = -(-total_steps // every)
        log(
            f"Power-function averages of widths {widths[0]:g} and {widths[1]:g}: snapshots of both every {every:,} "
            f"steps, {2 * count * size / 1e6:,.1f} MB at the end, in {folder / SNAPSHOTS}"
        )

    def levels(step: int) -> np.ndarray:
        key = rng.key(training.seed, rng.TIMESTEPS, step)
        return np.asarray(make_objective(config.diffusion).draw_level(key, training.batch_size))

    progress = Progress(start, total_steps, config, metrics_log, steps_per_epoch, intervals, levels, log)
    progress.skipped_in_a_row = record["skipped_in_a_row"]
    feed = Feed(images.train, config, mesh, labels)
    return Run(
        config=config,
        folder=folder,
        log=log,
        images=images,
        info=info,
        graph=graph,
        feed=feed,
        dispatch=make_program(graph, optimizer, config, total_steps, mesh, image_shape, feed.resident is not None),
        validate=Validation(graph, config, images.validation, mesh, validation_labels),
        evaluate=evaluate,
        total_steps=total_steps,
        intervals=intervals,
        checkpoints=checkpoints,
        checkpoint_policy=CheckpointPolicy(config, total_steps),
        metrics_log=metrics_log,
        progress=progress,
        pictures=Pictures(folder, graph, config, image_shape, class_names),
        page=Page(folder, image_shape[2]),
        trackers=trackers,
        start_step=start,
        step=start,
        state=state,
        best=record["best"],
        saved_step=start,
        announce=announce,
    )


def count_steps(config: RunConfig, num_images: int) -> tuple[int, int]:
    """(steps per epoch, total steps of the run)."""
    steps_per_epoch = num_images // config.training.batch_size
    return steps_per_epoch, config.training.steps or config.training.epochs * steps_per_epoch


def make_mesh(batch_size: int) -> Mesh:
    """All devices, in one dimension "data". Raises UserError if a batch cannot be split evenly over them."""
    devices = jax.devices()
    if jax.process_count() > 1:
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    if batch_size % len(devices):
        fitting = max(n for n in range(1, len(devices)) if batch_size % n == 0)
        show = f"Show JAX only {fitting}: put {show_only(fitting)} before the command. A new run can also have "
        if jax.process_count() > 1:
            show = f"Take fewer processes or devices, {fitting} for example. A new run can also have "
        raise UserError(
            f"{batch_size} images (--batch-size divided by --accumulate) cannot be split evenly over {len(devices)} "
            f"devices.\n{show}a --batch-size that is a multiple of {len(devices)}."
        )
    return Mesh(np.asarray(devices), ("data",))


def show_only(count: int) -> str:
    """The environment variable that shows JAX only the first devices."""
    numbers = ",".join(map(str, range(count)))
    if jax.default_backend() == "cpu":
        return f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
    return f"TPU_VISIBLE_CHIPS={numbers}" if jax.default_backend() == "tpu" else f"CUDA_VISIBLE_DEVICES={numbers}"


def given_images(config: RunConfig, images, labels, log: Callable[[str], None]) -> tuple[RunConfig, data.ImageData]:
    """Images that are given from Python, as in `jax_ddpm.train`, and the settings that name them."""
    if images is None:
        raise UserError("labels are given without images: give images= too.")
    if not isinstance(images, data.ImageData):
        d = config.data
        images = data.from_arrays(
            images,
            labels,
            image_size=d.image_size,
            value_range=d.value_range,
            validation_fraction=d.validation_fraction,
            log=log,
        )
    elif labels is not None:
        raise UserError("labels are given twice: an ImageData has its own. Omit labels=.")
    size = tuple(map(int, images.train.shape[1:3]))
    return replace(config, data=replace(config.data, dataset=images.name, image_size=size)), images


def load_images(
    config: RunConfig, log: Callable[[str], None], resumed: bool = False, given: data.ImageData | None = None
) -> data.ImageData:
    """The images of a run: `given`, or else those that the settings name.

    resumed: the run was started before, so its images can have moved since.

    Raises UserError if there are fewer training images than a batch holds, or if --keep-best is on and there are no
    validation images.
    """
    d = config.data
    try:
        images = given or data.load(
            d.dataset,
            d.image_size,
            data_dir=d.data_dir,
            manual_dir=d.manual_dir,
            cache_dir=d.cache_dir,
            validation_fraction=d.validation_fraction,
            value_range=d.value_range,
            log=log,
        )
    except UserError as error:
        path = path_of(d.dataset)
        if not resumed or path is None or path.exists():
            raise
        place = "folder:PATH" if d.dataset.startswith("folder:") else "PATH"
        problem = str(error).splitlines()[0]
        raise UserError(f"{problem}\nIf the images have moved, add their new place: --dataset {place}.") from None
    if config.output.keep_best and not len(images.validation):
        raise UserError("keep_best needs held-out images, and there are none: give a --validation-fraction above 0.")
    for note in images.notes:
        log(note)
    if len(images.train) < config.training.batch_size:
        raise UserError(
            f"batch_size = {config.training.batch_size}, but {d.dataset} has only {len(images.train)} training images. "
            f"Choose a --batch-size of at most {len(images.train)}."
        )
    return images


def build_network(config: RunConfig, image_channels: int) -> nnx.Module:
    """The network that is trained, without weights."""
    network = unets.build_in(config.training.precision, config.network, image_channels)
    if config.network.name not in BUILT_IN:
        check_training(network)
        check_takes_labels(config, network)
    return network


def make_network(
    config: RunConfig,
    image_shape: tuple[int, int, int],
    has_checkpoint: bool,
    log: Callable[[str], None] = print,
):
    """The network, with random initial weights or the weights of `init_from`.

    has_checkpoint: a checkpoint will be restored, so the file of `init_from` is not read, and may be gone. log: called
    with what was taken from that file.
    """
    network = build_network(config, image_shape[2])
    if config.training.init_from is None or has_checkpoint:
        weights.initialise(network, config.training.seed)
    else:
        file = config.training.init_from
        values = initial_weights(file, config.network, weights.array_shapes, weights.read_checkpoint, log)
        weights.load_state_dict(network, values)
    return network
