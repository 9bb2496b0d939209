"""Several runs side by side: settings that differ, losses, scores, speed, and pictures of the same seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ImageOps

from jax_ddpm.evaluation.results import read_results
from jax_ddpm.evaluation.samples import draw_samples
from jax_ddpm.report import channel_note, html_page, table
from jax_ddpm.report.pictures import GAP
from jax_ddpm.spec.data_record import DataRecord, read_record
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_folder import has_model_file
from jax_ddpm.spec.read_run import CONFIG_FILE, read_config
from jax_ddpm.spec.run_checkpoints import steps_of
from jax_ddpm.spec.run_config import LOSS_SETTINGS, RunConfig
from jax_ddpm.training.compare_scores import NONE, at_step, notes_on_scores, scores_by_step, scores_table
from jax_ddpm.training.progress import duration
from jax_ddpm.training.run_charts import chart, evaluated_features
from jax_ddpm.training.run_folder import MetricsLog, flatten
from jax_ddpm.training.run_page import PICTURE_BYTES, format_value
from jax_ddpm.weights.model import Model, load_model

UNLIKE = {"data.data_dir", "data.manual_dir", "data.cache_dir"}  # settings that change no result
ABOUT_FIGURES = (
    "A training loss is the mean over 1/25 of the training. Images per second: the median, so compilation does not "
    "count. Training time: of all optimiser steps with compilation, without validation, pictures and checkpoints."
)
SETTINGS_OF_LOSSES = (
    *("diffusion.objective", "diffusion.schedule", "diffusion.timesteps", "diffusion.beta_start", "diffusion.beta_end"),
    *("diffusion.trained_betas", "diffusion.zero_terminal_snr", "diffusion.sigma_data", "diffusion.p_mean"),
    *("diffusion.p_std", "diffusion.flow_time", *(f"training.{name}" for name in LOSS_SETTINGS)),
)


@dataclass(frozen=True)
class ComparedRun:
    """What the folder of a run holds."""

    name: str
    """The name of its folder, or its path if another run has the same name."""
    config: RunConfig
    record: DataRecord | None
    """What identifies its images; None for runs of earlier versions."""
    rows: list[dict]
    """The rows of metrics.jsonl."""
    results: list[dict]
    """The results of `jax-ddpm evaluate`, oldest first."""
    model: Model | None
    """Its weights for sampling; None if they cannot be loaded."""
    problem: str
    """Why they cannot be loaded, or where they come from if the run has no model file; else ""."""

    @property
    def batch_size(self) -> int:
        return self.config.training.batch_size


def open_runs(paths: Sequence[Path], log: Callable[[str], None] = print) -> list[ComparedRun]:
    """The runs in these folders. Raises UserError for fewer than two, and for a folder that holds no run."""
    if len(paths) < 2:
        raise UserError("A comparison needs two runs or more: name their folders.")
    for path in paths:
        if not (path / CONFIG_FILE).is_file():
            raise UserError(f"{path} is no run: expected the folder of a training, which holds {CONFIG_FILE}.")
    names = [path.resolve().name for path in paths]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [open_run(path, name, log) for path, name in zip(paths, names, strict=True)]


def open_run(path: Path, name: str, log: Callable[[str], None]) -> ComparedRun:
    config, model, problem = read_config(path / CONFIG_FILE), None, ""
    try:
        step = steps[-1] if (steps := steps_of(path)) and not has_model_file(path) else None
        if step is not None:
            problem = f"{name} was interrupted before it wrote its model file. Took its checkpoint of step {step:,}."
        model = load_model(path, precision=precision_of(config), step=step, log=log)
    except UserError as error:
        problem = f"The model of {name} cannot be loaded: {str(error).splitlines()[0]}"
    rows = MetricsLog(path, log).rows()
    return ComparedRun(name, config, read_record(path), rows, read_results(path), model, problem)


def precision_of(config: RunConfig) -> str:
    """The precision that a run's weights are sampled in: that of the training, but float32 for float64."""
    return "float32" if config.training.precision == "float64" else config.training.precision


# Tables: rows of a name and a text for each run.


def settings_table(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """The settings that are not the same in all runs, without paths and what a run writes."""
    settings = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    names = [name for name in names if name not in UNLIKE and not name.startswith("output.")]
    rows = [[name, *(format_value(each[name]) if name in each else NONE for each in settings)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def figures_table(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """Parameters, steps, losses, speed and time of each run, then its scores."""
    rows = [
        ["parameters", *(f"{run.model.num_parameters:,}" if run.model else NONE for run in runs)],
        ["steps", *(f"{run.rows[-1]['step']:,}" if run.rows else NONE for run in runs)],
        ["training loss, last", *(loss_text(run, last=True) for run in runs)],
        ["training loss, lowest", *(loss_text(run, last=False) for run in runs)],
        ["validation loss, last", *(validation_text(run, last=True) for run in runs)],
        ["validation loss, lowest", *(validation_text(run, last=False) for run in runs)],
        ["images/s, median", *(f"{speed:,.0f}" if (speed := median_speed(run)) else NONE for run in runs)],
        ["training time, sum", *(duration(seconds) if (seconds := training_seconds(run)) else NONE for run in runs)],
        *scores_table(runs),
    ]
    return [row for row in rows if set(row[1:]) != {NONE}]


def smooth_loss(run: ComparedRun) -> tuple[np.ndarray, np.ndarray]:
    """(steps, losses): the training loss, each a mean over 1/25 of the training."""
    rows = [row for row in run.rows if row.get("loss") is not None]
    window = max(1, len(rows) // 25)
    losses = np.convolve([row["loss"] for row in rows], np.ones(window) / window, "valid") if rows else np.zeros(0)
    return np.asarray([row["step"] for row in rows[window - 1 :]], int), losses


def loss_text(run: ComparedRun, last: bool) -> str:
    steps, losses = smooth_loss(run)
    return NONE if not len(losses) else at_step(losses[-1], None) if last else at_step(*lowest(losses, steps))


def lowest(values, steps) -> tuple[float, int]:
    place = int(np.argmin(values))
    return values[place], steps[place]


def validation_text(run: ComparedRun, last: bool) -> str:
    pairs = [(row["validation_loss"], row["step"]) for row in run.rows if row.get("validation_loss") is not None]
    if not pairs:
        return NONE
    return at_step(pairs[-1][0], None) if last else at_step(*lowest(*zip(*pairs, strict=True)))


def median_speed(run: ComparedRun) -> float | None:
    return float(np.median([row["images_per_second"] for row in run.rows])) if run.rows else None


def training_seconds(run: ComparedRun) -> float:
    """Time of the optimiser steps, without validation, pictures and checkpoints."""
    steps = np.diff([0, *(row["step"] for row in run.rows)])
    speeds = [row["images_per_second"] for row in run.rows]
    return sum(n * run.batch_size / speed for n, speed in zip(steps, speeds, strict=True) if speed)


# What is said about them.


def notes_on(runs: Sequence[ComparedRun]) -> list[str]:
    """Sentences on what cannot be compared, or not be shown."""
    notes = [run.problem for run in runs if run.problem]
    recorded = all(run.record for run in runs)
    images = [image_text(run, recorded) for run in runs]
    if len(set(images)) > 1:
        each = "; ".join(f"{run.name}: {text}" for run, text in zip(runs, images, strict=True))
        notes.append(f"The runs have different images, so their losses and scores do not compare. {each}.")
    settings = [flatten(run.config) for run in runs]
    unlike = [name.split(".")[1] for name in SETTINGS_OF_LOSSES if len({str(each.get(name)) for each in settings}) > 1]
    if unlike:
        notes.append(f"The runs differ in {', '.join(unlike)}, so their losses do not compare.")
    notes += notes_on_scores(runs)
    return notes


def image_text(run: ComparedRun, recorded: bool) -> str:
    """What identifies a run's images, as text. recorded: all runs have records, else names and sizes are compared."""
    if recorded:
        return f"{run.record.describe()}, {run.config.data.dataset} (hash {run.record.fingerprint[:8]})"
    return f"{run.config.data.dataset}, size {format_value(run.config.data.image_size)}"


# Pictures and the page.


def draw_same_seeds(
    runs: Sequence[ComparedRun],
    num_images: int,
    sampler: SamplerConfig | Mapping[str, SamplerConfig],
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[str, int], None] | None = None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Images 0 to N - 1 of a seed from each model that has the image size of the first one.

    sampler: one for all runs, or one for each by the name of the run.

    Returns:
        uint8 (N, H, W, C) by the name of the run, and a sentence for each run that is left out.
    """
    loaded = [run for run in runs if run.model]
    drawn, notes = {}, []
    for run in loaded:
        shape, first = run.model.info.image_shape, loaded[0].model.info.image_shape
        if shape != first:
            sizes = [" x ".join(map(str, each)) for each in (shape, first)]
            notes.append(f"No pictures of {run.name}: its images are {sizes[0]}, those of {loaded[0].name} {sizes[1]}.")
            continue
        said = None if progress is None else lambda done, run=run: progress(run.name, done)
        chosen = sampler if isinstance(sampler, SamplerConfig) else sampler[run.name]
        drawn[run.name] = draw_samples(run.model, num_images, chosen, seed, batch_size, progress=said)
    return drawn, notes


def comparison_page(
    runs: Sequence[ComparedRun], drawn: dict[str, np.ndarray], notes: Sequence[str], about: str, command: str
) -> str:
    """The HTML of the comparison.

    Args:
        drawn: from `draw_same_seeds`.
        notes: sentences at the top.
        about: how the pictures were drawn.
        command: the command that makes this page.
    """
    names = [run.name for run in runs]
    tables = (
        ("results", "Results", ABOUT_FIGURES, figures_table(runs)),
        ("differing", "Settings that differ", "All other settings are the same.", settings_table(runs)),
    )
    content = {
        "title": f"Comparison of {len(runs)} runs",
        "subtitle": ", ".join(names),
        "facts": [],
        "notes": list(notes),
        "tables": [
            {"id": name, "title": title, "text": text, "columns": ["", *names], "rows": rows}
            for name, title, text, rows in tables
            if rows
        ],
        "strips": strips(drawn, about, command) if drawn else None,
        "charts": charts(runs),
        "grids": [],
        "reverse": None,
        "nearest": None,
        "pictures": [],
        "settings": [],
        "command": "",
    }
    return html_page.page(content)


def strips(drawn: dict[str, np.ndarray], about: str, command: str) -> dict:
    """The pictures of each run, of which picture i is image i of the seed."""
    rows = []
    for name, images in drawn.items():
        tiles = [ImageOps.crop(table(image[None, None]), GAP) for image in images]
        limit = PICTURE_BYTES // len(tiles)
        parts = [html_page.image(tile, limit, f"Sample {i} of {name}") for i, tile in enumerate(tiles)]
        rows.append({"name": name, "images": parts})
    channels = next(iter(drawn.values())).shape[-1]
    text = f"Pictures at the same place start from the same noise. {about} {channel_note(channels) or ''}".rstrip()
    return {"title": "The same seeds", "text": text, "rows": rows, "command": command}


def charts(runs: Sequence[ComparedRun]) -> list[dict]:
    """Training loss, validation loss and FIDs of all runs over the steps."""

    def of_rows(name: str, style: str) -> list[dict]:
        found = []
        for run, colour in coloured:
            points = [(row["step"], row[name]) for row in run.rows if row.get(name) is not None]
            if points:
                found.append(html_page.curve(run.name, *zip(*points, strict=True), colour, style, log=True))
        return found

    coloured = [(run, html_page.COLOURS[i % len(html_page.COLOURS)]) for i, run in enumerate(runs)]
    losses = [html_page.curve(run.name, *smooth_loss(run), colour, log=True) for run, colour in coloured if run.rows]
    made = [
        chart("Training loss", "Each point is the mean loss over 1/25 of the training before it.", losses),
        chart(
            "Validation loss", "With the weights for sampling (the EMA, if on).", of_rows("validation_loss", "points")
        ),
    ]
    for features in dict.fromkeys(name for run in runs for name in evaluated_features(run.rows)):
        text = f"During the training, by the features {features}. Smaller is better."
        made.append(chart(f"FID ({features})", text, of_rows(f"fid_{features}", "points"), y="FID"))
    for features, text, points in scores_by_step(runs):
        lines = [
            html_page.curve(run.name, *zip(*points[run.name], strict=True), colour, "points", log=True)
            for run, colour in coloured
            if points[run.name]
        ]
        made.append(chart(f"FID ({features})", f"By jax-ddpm evaluate: {text}. Smaller is better.", lines, y="FID"))
    return [each for each in made if each["series"]]
