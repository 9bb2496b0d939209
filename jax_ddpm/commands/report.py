"""`jax-ddpm report`: write an HTML report of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_ddpm.commands.flags import ImportFlag, parse
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.run_checkpoints import is_checkpoint
from jax_ddpm.spec.types import Weights

EXAMPLES = ("runs/digits-digits", "runs/digits-digits --out page.html")


@dataclass(frozen=True)
class ReportFlags:
    """Write a report of a training run as one HTML file. If its final pictures are missing, draws them first."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run, or of one of its checkpoints."""
    out: Path | None = None
    """File to write. Default: report.html in the folder of the run."""
    weights: Weights | None = None
    """Draw the pictures with the EMA or the raw weights. Default: the weights in model.safetensors."""
    step: int | None = None
    """Draw the pictures with the weights of this checkpoint."""
    imports: ImportFlag = ()


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(ReportFlags, arguments, prog, EXAMPLES)
    from jax_ddpm.training import run_folder, run_page  # imported here so that --help and flag errors appear at once

    run, step = flags.run, flags.step
    if step is None and is_checkpoint(run):
        run, step = run.absolute().parents[1], int(run.name)
    if not (run / run_folder.CONFIG_FILE).is_file():
        raise UserError(f"There is no run in {run}: expected a folder with a {run_folder.CONFIG_FILE}.")
    config = run_folder.load_config(run)
    notes = draw_pictures(run, config, flags.weights, step)
    try:
        path = run_page.write_page(run, flags.out, notes)
    except OSError as error:
        raise UserError(f"{error.filename or flags.out or flags.run} cannot be written ({error.strerror}).") from None
    print(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


def draw_pictures(folder: Path, config, weights: Weights | None, step: int | None) -> tuple[str, ...]:
    """Draw the final pictures of the run's weights if they are missing. Returns notes on what the page cannot show.

    weights, step: as in `load_model`; None for those in model.safetensors.
    """
    from flax import nnx

    from jax_ddpm.layers import Buffer
    from jax_ddpm.report import channel_note
    from jax_ddpm.spec.data_record import check_same_images
    from jax_ddpm.spec.model_files import MODEL_FILE
    from jax_ddpm.training import prepare, run_page
    from jax_ddpm.training.compare import precision_of
    from jax_ddpm.training.pictures import Pictures
    from jax_ddpm.training.run_folder import MetricsLog
    from jax_ddpm.weights.model import load_model

    if weights is None and step is None and not (folder / MODEL_FILE).is_file():
        return ("This run has saved no weights yet.",)
    model = load_model(folder, precision=precision_of(config), weights=weights, step=step)
    are_raw = weights == "raw" and config.training.ema
    if run_page.drawn_with(folder) == (model.info.step, are_raw):
        return ()
    notes = ()
    try:
        images = prepare.load_images(config, print)
        check_same_images(folder, images, print)
    except UserError as error:
        images = None
        notes = (f"Without the data set there are no nearest training images and no loss by timestep: {error}",)
    print(f"Drawing the final pictures ... {channel_note(model.info.image_shape[2])}".rstrip())
    graph, params, buffers = nnx.split(model.network, nnx.Param, Buffer)
    rows = MetricsLog(folder, print).rows()
    pictures = Pictures(folder, graph, config, model.info.image_shape, model.info.class_names)
    for path, text in pictures.save_final(params, buffers, model.info.step, images, rows, are_raw):
        print(f"  {path}: {text}")
    return notes
