"""A training run, from a `RunConfig` to a folder with weights and pictures: prepare, take the steps, finish."""

import math
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax import nnx
from tqdm import tqdm

from jax_ddpm import weights
from jax_ddpm.process import check_devices
from jax_ddpm.spec.data_record import check_same_images, find_images
from jax_ddpm.spec.ema_snapshots import SNAPSHOTS, snapshot_path
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.inputs import check_path
from jax_ddpm.spec.model_files import MODEL_FILE
from jax_ddpm.spec.run_classes import with_classes, with_classes_of_run
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training.checkpoint import Checkpoints
from jax_ddpm.training.follow import command_to_resume, compare_images, follow, hosts_of_run, is_joined
from jax_ddpm.training.interrupt import SignalHandler
from jax_ddpm.training.prepare import Run, given_images, load_images, make_mesh, make_network, prepare
from jax_ddpm.training.run_folder import check_folder, default_out, lock_folder
from jax_ddpm.training.run_page import write_page
from jax_ddpm.training.start_hosts import continue_with
from jax_ddpm.training.trackers import check_trackers

WRITE_ERRORS = (OSError, safetensors.SafetensorError)


def train(
    config: RunConfig,
    out: str | Path | None = None,
    resume: bool = False,
    log: Callable[[str], None] = tqdm.write,
    *,
    images: Any = None,
    labels: Any = None,
) -> Path:
    """Train a model, and return the folder of the run.

    Writes `config.json`, `metrics.jsonl`, `checkpoints/`, `samples/`, `model.safetensors` (the weights, in float32),
    `report.html` and `tensorboard/` into the folder, and with `power_ema` also `power_ema/`.

    Args:
        config: the settings of the run; `jax_ddpm.preset(name)` gives those of a preset.
        out: folder of the run; `runs/DATASET-PRESET` if None. It must not hold another run.
        resume: continue the run in `out` from its newest undamaged checkpoint, or from step 0 if it has none. The
            result is the same, bit for bit, as that of an uninterrupted run.
        log: called with each line of text that the run reports.
        images: an array of images, as `jax_ddpm.data.from_arrays` takes it, or a `jax_ddpm.data.ImageData`. The
            settings in `config.data` hold for an array too. None: the data set that `config.data` names.
        labels: class of each image of an array, integers or texts (N,). `conditional` trains on them.

    Returns:
        The path of the folder; `jax_ddpm.load_model` takes it.

    Raises:
        UserError: settings, data or a folder that cannot be used, a resumed run with other settings, or
            `max_skipped` steps in a row with a loss or gradient that is not finite.
        Interrupted: a `KeyboardInterrupt`, raised after SIGINT, SIGTERM or SIGHUP, once a checkpoint is saved.
    """
    expected = "expected a RunConfig, as jax_ddpm.preset returns it"
    require(isinstance(config, RunConfig), "config", repr(config), expected)
    if out is not None:
        check_path("out", out, "expected the path of a folder")
    given = None
    log = print_nothing if is_joined() and jax.process_index() else log
    if images is not None or labels is not None:
        config, given = given_images(config, images, labels, log)
    config.check()
    check_trackers(config.output)
    if config.training.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    folder = Path(out) if out is not None else default_out(config)
    config = with_classes_of_run(config, folder) if resume else config
    if not is_joined():
        check_folder(folder, config, resume)
    if resume:
        config = replace(config, data=replace(config.data, dataset=find_images(folder, config.data.dataset)))
    with SignalHandler() as signals, hosts_of_run(signals, folder, config, resume) as hosts:
        check_devices()
        mesh = make_mesh(config.training.batch_size // config.training.accumulate)
        if hosts is not None and hosts.index > 0:
            follow(config, hosts, signals, mesh, resume, given)
            return folder
        if hosts is not None:
            check_folder(folder, config, resume)
        images = load_images(config, log, resume, given)
        config = with_classes(config, images)
        if resume:
            check_same_images(folder, images, log, config.training.conditional)
        if hosts is not None:
            compare_images(hosts, images)
        checkpoints = Checkpoints(folder / "checkpoints", config.output, log)
        if hosts is not None:
            hosts.saving = lambda: checkpoints.writer
        has_checkpoint = resume and bool(checkpoints.steps())
        network = make_network(config, images.train.shape[1:], has_checkpoint, log)
        with lock_folder(folder, config, resume, images), checkpoints:
            signals.message = f"Stopped. {continue_with(command_to_resume(folder))}"
            announce = {} if hosts is None else {"announce": hosts.announce}
            run = prepare(config, folder, resume, images, network, mesh, checkpoints, log, **announce)
            del network  # the state has copies of its arrays
            signals.deferred = True
            with run.trackers:
                with closing(run.progress):  # else an error would be printed behind the bar
                    take_steps(run, signals)
                signals.raise_if_signalled()
                finish(run)
    return folder


def print_nothing(text: str) -> None:
    """The log of all processes but process 0."""


def take_steps(run: Run, signals: SignalHandler) -> None:
    """Train to the last step, or until a signal comes, and save a checkpoint of the last step that was done.

    The metrics of a dispatch are read after the next one has started, so that the device does not wait for the host.
    """
    unread = None  # step, number of steps and metrics of the last dispatch
    while run.step < run.total_steps and signals.signal_number is None:
        n = min(run.feed.next_steps, run.intervals.next(run.step) - run.step)
        run.announce(n)
        run.state, metrics = run.feed.run(run.dispatch, run.state, run.step, n)
        if unread is not None:
            run.progress.update(*unread)
        unread = (run.step, n, metrics)
        run.step += n
        if run.intervals.is_due(run.step):
            run.progress.update(*unread)
            unread = None
            run.feed.reset_timer()
            with run.progress.pause():
                validate_sample_save(run)
    run.state = run.state_here()
    run.announce(0)
    if unread is not None:
        run.progress.update(*unread)
    if run.step != run.saved_step:
        save_checkpoint(run)
    run.checkpoints.wait()


def validate_sample_save(run: Run) -> None:
    """Validate, evaluate, store averages, draw, update the page, export and save: what of these is due at this step."""
    output, step, improved, measured = run.config.output, run.step, False, {}
    if run.intervals.validation(step):
        loss = measured["validation_loss"] = run.validate(run.state)
        improved = output.keep_best and math.isfinite(loss) and (not run.best or loss < run.best["validation_loss"])
        run.best = {"step": step, "validation_loss": loss} if improved else run.best
    if run.intervals.evaluation(step):
        measured |= run.evaluate(*run.part_here("weights"), step)
    if measured or (step == run.total_steps and run.metrics_log.pending):
        run.progress.write_row(step, **measured)
    if run.intervals.snapshot(step):
        with log_write_errors("A snapshot of the averages", run.log):
            save_snapshots(run)
    if run.intervals.samples(step):
        with log_write_errors("The sample grid", run.log):
            grid = run.pictures.save_grid(*run.part_here("weights"), step)
            run.trackers.picture("samples", grid, step)
    with log_write_errors("The page", run.log):
        run.page.refresh()
    due = run.intervals.checkpoint(step)
    if improved or (due and run.checkpoint_policy.should_save(step, run.checkpoints.is_saving)):
        with run.checkpoint_policy:
            if improved or not output.keep_best:
                with log_write_errors(MODEL_FILE, run.log):
                    export(run)
            save_checkpoint(run)  # last: if the run is killed earlier, the resumed run repeats all of the above


def save_checkpoint(run: Run) -> None:
    run.trackers.flush()
    record = {
        "pending": run.metrics_log.pending,
        "unwritten": run.metrics_log.unwritten,
        "skipped_in_a_row": run.progress.skipped_in_a_row,
        "best": run.best,
    }
    run.checkpoints.save(run.step, run.state_here(), record)
    run.saved_step = run.step


def finish(run: Run) -> None:
    """Export the weights (with --keep-best: the best ones), and make the final pictures and the page."""
    folder, log, should_export = run.folder, run.log, True
    if run.best and run.best["step"] != run.step:
        best = run.best["step"]
        log(f"Best validation loss: {run.best['validation_loss']:.4g}, at step {best:,}. Using its weights.")
        if damage := run.checkpoints.find_damage(best):
            log(f"The checkpoint of step {best:,} is damaged: {damage}.")
            log(f"The pictures show the weights of step {run.step:,} instead; {MODEL_FILE} is left unchanged.")
            should_export = False
        else:
            run.step, (run.state, _) = best, run.checkpoints.restore(best, run.state)
    try:
        if should_export:
            export(run)
        log("Making the final pictures ...")
        if run.start_step < run.total_steps:
            run.pictures.limit_seconds(time.perf_counter() - run.progress.start_time)
        rows = run.metrics_log.rows()
        for path, text in run.pictures.save_final(*run.part_here("weights"), run.step, run.images, rows):
            log(f"  {path}: {text}")
        if run.start_step < run.total_steps:
            run.trackers.picture("final samples", folder / "samples" / "grid.png", run.total_steps)
        run.trackers.flush()
        log(f"Page of the run: {write_page(folder)}")
    except WRITE_ERRORS as error:
        raise UserError(
            f"{folder} cannot be written ({one_line(error)}). "
            "The training is done. Free disk space and add --resume to write what is missing."
        ) from None
    log(f"Weights: {folder / MODEL_FILE}   Metrics: {run.metrics_log.path}")


def export(run: Run) -> None:
    """Write model.safetensors: the weights used for sampling (the EMA if there is one), in float32."""
    write_weights(run, *run.part_here("weights"), run.folder / MODEL_FILE)


def save_snapshots(run: Run) -> None:
    """Write the power-function averages of this step, a file each, in float32."""
    (run.folder / SNAPSHOTS).mkdir(exist_ok=True)
    averages, buffers = run.part_here("power_ema")
    for average, width in zip(averages, run.config.training.power_ema_widths, strict=True):
        write_weights(run, average, buffers, snapshot_path(run.folder, run.step, width))


def write_weights(run: Run, parameters: nnx.State, buffers: nnx.State, path: Path) -> None:
    values = weights.state_dict(nnx.merge(run.graph, parameters, buffers))
    values = {name: value.astype(np.float32) for name, value in values.items()}
    write_model(path, values, replace(run.info, step=run.step))


@contextmanager
def log_write_errors(what: str, log: Callable[[str], None]):
    """Inside this context, an error while writing `what` is logged, and the run continues."""
    try:
        yield
    except WRITE_ERRORS as error:
        log(f"{what} could not be written ({one_line(error)}). Training continues.")
