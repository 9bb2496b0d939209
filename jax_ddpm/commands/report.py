"""`jax-ddpm report`: write an HTML report of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_ddpm.commands.flags import parse
from jax_ddpm.spec.errors import UserError

EXAMPLES = ("runs/digits-digits", "runs/digits-digits --out page.html")


@dataclass(frozen=True)
class ReportFlags:
    """Write a report of a training run as one HTML file. If its final pictures are missing, draws them first."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    out: Path | None = None
    """File to write. Default: report.html in the folder of the run."""


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(ReportFlags, arguments, prog, EXAMPLES)
    from jax_ddpm.training import run_folder, run_page  # imported here so that --help and flag errors appear at once

    if not (flags.run / run_folder.CONFIG_FILE).is_file():
        raise UserError(f"There is no run in {flags.run}: expected a folder with a {run_folder.CONFIG_FILE}.")
    config = run_folder.load_config(flags.run)
    notes = draw_pictures(flags.run, config)
    try:
        path = run_page.write_page(flags.run, flags.out, notes)
    except OSError as error:
        raise UserError(f"{error.filename or flags.out or flags.run} cannot be written ({error.strerror}).") from None
    print(f"Wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


def draw_pictures(folder: Path, config) -> tuple[str, ...]:
    """Draw the final pictures of the run's weights if they are missing. Returns notes on what the page cannot show."""
    from flax import nnx

    from jax_ddpm.layers import Buffer
    from jax_ddpm.report import channel_note
    from jax_ddpm.spec.model_files import MODEL_FILE
    from jax_ddpm.training import prepare, run_page
    from jax_ddpm.training.data_record import check_same_images
    from jax_ddpm.training.pictures import Pictures
    from jax_ddpm.training.run_folder import MetricsLog
    from jax_ddpm.weights.model import load_model

    if not (folder / MODEL_FILE).is_file():
        return ("This run has saved no weights yet.",)
    precision = "bfloat16" if config.training.precision == "bfloat16" else "float32"
    model = load_model(folder, precision=precision)
    numbers = run_page.read_numbers(folder)
    if numbers is not None and numbers["step"] == model.info.step:
        return ()
    notes = ()
    try:
        images = prepare.load_images(config, print)
        check_same_images(folder, images, print)
    except UserError as error:
        images = None
        notes = (f"Without the data set there are no nearest training images and no loss by timestep: {error}",)
    print(f"Drawing the final pictures ... {channel_note(model.info.image_shape[2])}".rstrip())
    graph, weights, buffers = nnx.split(model.network, nnx.Param, Buffer)
    rows = MetricsLog(folder, print).rows()
    pictures = Pictures(folder, graph, config, model.info.image_shape)
    for path, text in pictures.save_final(weights, buffers, model.info.step, images, rows):
        print(f"  {path}: {text}")
    return notes
