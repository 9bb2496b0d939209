"""A whole training run, from a `RunConfig` to a folder of weights and pictures."""

import math
import shlex
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jax_ddpm import data, rng, unets, weights
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import MODEL_FILE, initial_weights
from jax_ddpm.spec.model_info import ModelInfo, describe
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training.checkpoint import Checkpoints
from jax_ddpm.training.feed import Feed, Validation, make_dispatch
from jax_ddpm.training.interrupt import Interruption
from jax_ddpm.training.pictures import Pictures
from jax_ddpm.training.progress import Intervals, Progress, Saving
from jax_ddpm.training.run_folder import MetricsLog, check_folder, claim, default_out
from jax_ddpm.training.run_page import Page, write_page
from jax_ddpm.training.state import TrainState, create_state, num_parameters
from jax_ddpm.training.step import make_optimizer, make_train_step
from jax_ddpm.training.tensorboard import TensorBoard

CANNOT_WRITE = (OSError, safetensors.SafetensorError)


def train(
    config: RunConfig, out: str | Path | None = None, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> Path:
    """Train as `config` says, in the folder `out`, and return that folder.

    Leaves there config.json, metrics.jsonl, checkpoints/, samples/, model.safetensors and report.html. With `resume`,
    goes on from the newest complete checkpoint (from the start where there is none). Raises UserError for settings,
    data or folders that cannot be used, and Interrupted after a SIGINT or SIGTERM, when it has saved.
    """
    config.check()
    if config.training.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    folder = Path(out) if out is not None else default_out(config)
    check_folder(folder, config, resume)
    with Interruption() as interruption:
        mesh = make_mesh(config.training.batch_size // config.training.accumulate)
        images = load_images(config, log)
        network = make_network(config, images.train.shape[1:])
        with claim(folder, config, resume), Checkpoints(folder / "checkpoints", config.output, log) as checkpoints:
            run(config, folder, resume, mesh, images, network, checkpoints, interruption, log)
    return folder


def run(
    config: RunConfig,
    folder: Path,
    resume: bool,
    mesh: Mesh,
    images: data.ImageData,
    network: nnx.Module,
    checkpoints: Checkpoints,
    interruption: Interruption,
    log: Callable[[str], None],
) -> None:
    """What `train` does once everything is checked and loaded, and the folder is its own."""
    image_shape = images.train.shape[1:]
    interruption.message = f"Stopped. To go on: python scripts/train_jax.py --resume --out {shlex.quote(str(folder))}"
    steps_per_epoch, total_steps = lengths(config, len(images.train))
    optimizer = make_optimizer(config.training)
    dtype = np.float64 if config.training.precision == "float64" else np.float32
    graph, state = create_state(network, optimizer, config.training.ema, dtype)
    info = ModelInfo(network=config.network, image_shape=image_shape, diffusion=config.diffusion)
    log(describe(info, num_parameters(state.params)))
    num_train, num_held_out, batch_size = len(images.train), len(images.validation), config.training.batch_size
    log(f"{num_train:,} training images, {num_held_out:,} held out; {total_steps:,} steps of {batch_size}")
    kind = f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({jax.default_backend()})"
    log(f"Devices: {kind}, {config.training.precision}")

    metrics_log = MetricsLog(folder, log)
    output = config.output
    checkpoints.tidy()
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    start, record = 0, {"pending": [], "unwritten": [], "skipped_in_a_row": 0, "best": None}
    if resume and (found := checkpoints.newest(state)):
        start, state, record = found
        log(f"Going on from step {start:,}.")
    metrics_log.rewind(start, record["pending"], record["unwritten"])
    best = record["best"]  # {"step": ..., "validation_loss": ...}

    feed = Feed(images.train, config, mesh)
    train_step = make_train_step(graph, optimizer, config, total_steps, mesh, feed.unroll_accumulation)
    dispatch = make_dispatch(train_step, feed.steps_per_dispatch)
    validate = Validation(graph, config, images.validation, mesh)
    pictures = Pictures(folder, graph, config, image_shape)
    page = Page(folder)
    tensorboard = TensorBoard(folder, start, output.tensorboard, log)
    metrics_log.watch = tensorboard.row
    intervals = Intervals(config, steps_per_epoch, total_steps, len(images.validation) > 0)
    saving, on_cpu = Saving(config, total_steps), jax.default_backend() == "cpu"
    seed, timesteps = config.training.seed, config.diffusion.timesteps
    progress = Progress(
        start,
        total_steps,
        config,
        metrics_log,
        steps_per_epoch,
        intervals,
        on_cpu,
        lambda step: np.asarray(rng.timesteps(rng.key(seed, rng.TIMESTEPS, step), batch_size, timesteps)),
        log,
    )
    progress.skipped_in_a_row = record["skipped_in_a_row"]

    def checkpoint():
        tensorboard.flush()
        rows = {"pending": metrics_log.pending, "unwritten": metrics_log.unwritten}
        checkpoints.save(step, state, {**rows, "skipped_in_a_row": progress.skipped_in_a_row, "best": best})

    step, in_flight, saved = start, None, start
    interruption.deferring = True
    while step < total_steps and interruption.number is None:
        n = min(feed.at_once, intervals.next(step) - step)
        state, metrics = feed.run(dispatch, state, step, n)
        if in_flight is not None:
            progress.read(*in_flight)  # waits for the dispatch before, while the device works at this one
        in_flight = (step, n, metrics)
        step += n
        if intervals.is_due(step):
            progress.read(*in_flight)
            in_flight = None
            feed.pause()
            with progress.pause():
                improved = False
                if intervals.validation(step):
                    loss = validate(state)
                    progress.row(step, validation_loss=loss)
                    improved = output.keep_best and math.isfinite(loss) and (not best or loss < best["validation_loss"])
                    best = {"step": step, "validation_loss": loss} if improved else best
                elif step == total_steps and metrics_log.pending:
                    progress.row(step)
                if intervals.samples(step):
                    with disk_may_fail("The sample grid", log):
                        grid = pictures.save_grid(state.weights, state.buffers, step)
                        tensorboard.picture("samples", grid, step)
                with disk_may_fail("The page", log):
                    page.refresh()
                if improved or (intervals.checkpoint(step) and saving.wants(step, checkpoints.writing)):
                    with saving:
                        if improved or not output.keep_best:
                            with disk_may_fail(MODEL_FILE, log):
                                export(folder, graph, state, replace(info, step=step))
                        checkpoint()  # last: a run killed before it does the rest again
                    saved = step
    if in_flight is not None:
        progress.read(*in_flight)
    if step != saved:
        checkpoint()
    progress.close()
    checkpoints.wait()
    interruption.end_of_deferring()

    lost = None
    if best and best["step"] != step:
        log(f"The best validation loss, {best['validation_loss']:.4g}, was that of step {best['step']:,}: its weights.")
        if lost := checkpoints.damage(best["step"]):
            log(f"They cannot be restored ({lost}): the pictures are of the last ones, {MODEL_FILE} stays.")
        else:
            step, (state, _) = best["step"], checkpoints.restore(best["step"], state)
    try:
        if not lost:
            export(folder, graph, state, replace(info, step=step))
        log("Making the closing pictures ...")
        for path, text in pictures.save_all(state.weights, state.buffers, step, images, metrics_log.rows()):
            log(f"  {path}: {text}")
        if start < total_steps:
            tensorboard.picture("closing samples", folder / "samples" / "grid.png", total_steps)
        tensorboard.flush()
        log(f"The page of this run: {write_page(folder)}")
    except CANNOT_WRITE as error:
        raise UserError(
            f"{folder} cannot be written ({one_line(error)}). "
            "The training is done; make room, and --resume makes what is missing."
        ) from None
    log(f"Weights: {folder / MODEL_FILE}   Metrics: {metrics_log.path}")


@contextmanager
def disk_may_fail(what: str, log: Callable[[str], None]):
    """Say that `what` could not be written, and go on."""
    try:
        yield
    except CANNOT_WRITE as error:
        log(f"{what} could not be written ({one_line(error)}). Training goes on.")


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


def export(folder: Path, graph, state: TrainState, info: ModelInfo) -> None:
    """model.safetensors: the weights that are sampled, in float32."""
    values = weights.state_dict(nnx.merge(graph, state.weights, state.buffers))
    write_model(folder / MODEL_FILE, {k: v.astype(np.float32) for k, v in values.items()}, info)
