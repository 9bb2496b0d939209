"""A whole training run, from a `RunConfig` to a folder of weights and pictures: prepare, take the steps, close."""

import math
import shlex
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import safetensors
from flax import nnx
from tqdm import tqdm

from jax_ddpm import weights
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import MODEL_FILE
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.write_model import write_model
from jax_ddpm.training.checkpoint import Checkpoints
from jax_ddpm.training.interrupt import Interruption
from jax_ddpm.training.prepare import Run, load_images, make_mesh, make_network, prepare
from jax_ddpm.training.run_folder import check_folder, claim, default_out
from jax_ddpm.training.run_page import write_page

CANNOT_WRITE = (OSError, safetensors.SafetensorError)


def train(
    config: RunConfig, out: str | Path | None = None, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> Path:
    """Train as `config` says, in the folder `out` (default: runs/DATASET-PRESET), and return that folder.

    Leaves there config.json, metrics.jsonl, checkpoints/, samples/, model.safetensors and report.html. With `resume`,
    goes on from the newest complete checkpoint, or from the start where there is none. Raises UserError for settings,
    data or folders that cannot be used, and Interrupted, a KeyboardInterrupt, after a SIGINT or SIGTERM, once it has
    saved.
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
            interruption.message = (
                f"Stopped. To go on: python scripts/train_jax.py --resume --out {shlex.quote(str(folder))}"
            )
            run = prepare(config, folder, resume, images, network, mesh, checkpoints, log)
            interruption.deferring = True
            take_steps(run, interruption)
            interruption.end_of_deferring()
            close(run)
    return folder


def take_steps(run: Run, interruption: Interruption) -> None:
    """Every step that is left, or those up to a signal; the last one is saved.

    A dispatch's metrics are read while the device works at the next one.
    """
    in_flight = None
    while run.step < run.total_steps and interruption.number is None:
        n = min(run.feed.at_once, run.intervals.next(run.step) - run.step)
        run.state, metrics = run.feed.run(run.dispatch, run.state, run.step, n)
        if in_flight is not None:
            run.progress.read(*in_flight)
        in_flight = (run.step, n, metrics)
        run.step += n
        if run.intervals.is_due(run.step):
            run.progress.read(*in_flight)
            in_flight = None
            run.feed.pause()
            with run.progress.pause():
                do_what_is_due(run)
    if in_flight is not None:
        run.progress.read(*in_flight)
    if run.step != run.saved:
        save_checkpoint(run)
    run.progress.close()
    run.checkpoints.wait()


def do_what_is_due(run: Run) -> None:
    """Validate, draw a sample grid, refresh the page, export and save, as the intervals say for this step."""
    output, step, improved = run.config.output, run.step, False
    if run.intervals.validation(step):
        loss = run.validate(run.state)
        run.progress.row(step, validation_loss=loss)
        improved = output.keep_best and math.isfinite(loss) and (not run.best or loss < run.best["validation_loss"])
        run.best = {"step": step, "validation_loss": loss} if improved else run.best
    elif step == run.total_steps and run.metrics_log.pending:
        run.progress.row(step)
    if run.intervals.samples(step):
        with disk_may_fail("The sample grid", run.log):
            grid = run.pictures.save_grid(run.state.weights, run.state.buffers, step)
            run.tensorboard.picture("samples", grid, step)
    with disk_may_fail("The page", run.log):
        run.page.refresh()
    if improved or (run.intervals.checkpoint(step) and run.saving.wants(step, run.checkpoints.writing)):
        with run.saving:
            if improved or not output.keep_best:
                with disk_may_fail(MODEL_FILE, run.log):
                    export(run)
            save_checkpoint(run)  # last: a run that is killed before it does all of the above again


def save_checkpoint(run: Run) -> None:
    run.tensorboard.flush()
    record = {
        "pending": run.metrics_log.pending,
        "unwritten": run.metrics_log.unwritten,
        "skipped_in_a_row": run.progress.skipped_in_a_row,
        "best": run.best,
    }
    run.checkpoints.save(run.step, run.state, record)
    run.saved = run.step


def close(run: Run) -> None:
    """Export the weights, the best ones with --keep-best, and make the closing pictures and the page."""
    folder, log, exports = run.folder, run.log, True
    if run.best and run.best["step"] != run.step:
        best = run.best["step"]
        log(f"The best validation loss, {run.best['validation_loss']:.4g}, was that of step {best:,}: its weights.")
        if damage := run.checkpoints.damage(best):
            log(f"They cannot be restored ({damage}): the pictures are of the last ones, {MODEL_FILE} stays.")
            exports = False
        else:
            run.step, (run.state, _) = best, run.checkpoints.restore(best, run.state)
    try:
        if exports:
            export(run)
        log("Making the closing pictures ...")
        state, rows = run.state, run.metrics_log.rows()
        for path, text in run.pictures.save_all(state.weights, state.buffers, run.step, run.images, rows):
            log(f"  {path}: {text}")
        if run.start < run.total_steps:
            run.tensorboard.picture("closing samples", folder / "samples" / "grid.png", run.total_steps)
        run.tensorboard.flush()
        log(f"The page of this run: {write_page(folder)}")
    except CANNOT_WRITE as error:
        raise UserError(
            f"{folder} cannot be written ({one_line(error)}). "
            "The training is done; make room, and --resume makes what is missing."
        ) from None
    log(f"Weights: {folder / MODEL_FILE}   Metrics: {run.metrics_log.path}")


def export(run: Run) -> None:
    """Write model.safetensors: the weights that are sampled, in float32."""
    values = weights.state_dict(nnx.merge(run.graph, run.state.weights, run.state.buffers))
    values = {name: value.astype(np.float32) for name, value in values.items()}
    write_model(run.folder / MODEL_FILE, values, replace(run.info, step=run.step))


@contextmanager
def disk_may_fail(what: str, log: Callable[[str], None]):
    """Say that `what` could not be written, and go on."""
    try:
        yield
    except CANNOT_WRITE as error:
        log(f"{what} could not be written ({one_line(error)}). Training goes on.")
