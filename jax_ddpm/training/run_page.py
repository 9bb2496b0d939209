"""report.html: the page of a run, made from the files in its folder. Loads no network and needs no data set."""

import dataclasses
import json
import math
import re
import shlex
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from jax_ddpm.report import channel_note, html_page
from jax_ddpm.spec.diffusion_config import CONTINUOUS_STEPS, SamplerConfig
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.network_config import BUILT_IN
from jax_ddpm.spec.noise_levels import level_text
from jax_ddpm.spec.own_networks import import_flags, recorded_imports
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training.pictures import NUMBERS_FILE, evenly_spaced_indices, preview_sampler
from jax_ddpm.training.run_charts import evaluated_features, final_charts, training_charts
from jax_ddpm.training.run_folder import CONFIG_FILE, STARTS, MetricsLog, load_config

PAGE_FILE = "report.html"
MIN_SECONDS_BETWEEN_PAGES = 60  # during the training
MAX_GRIDS = 12
TILE_PIXELS = 60
# Largest sizes of embedded images, so that a page stays under 5 MB.
GRID_BYTES, SHEET_BYTES, PICTURE_BYTES, TILE_BYTES = 110_000, 600_000, 180_000, 6_000
PICTURES = {
    "grid.png": ("Samples", "Drawn with the sampler and the number of steps of this run's settings."),
    "data.png": ("Training images", "The first images of the training set."),
    "forward.png": ("The forward process", "Noise added to training images, up to pure noise."),
    "reverse.png": ("The reverse process as a strip", "From noise to samples. Columns are evenly spaced in logSNR."),
    "x0.png": ("Predicted x_0", "Each state x_t, and below it the network's prediction of x_0."),
}


class Page:
    """Keeps the page of a running training up to date."""

    def __init__(self, folder: Path, image_channels: int):
        self.folder, self.image_channels, self.last_time = folder, image_channels, -math.inf

    def refresh(self) -> None:
        """Write the page again, at most once per MIN_SECONDS_BETWEEN_PAGES."""
        if time.monotonic() - self.last_time >= MIN_SECONDS_BETWEEN_PAGES:
            self.last_time = time.monotonic()
            notes = ("This training is still running, or it was interrupted.",)
            write_page(self.folder, notes=notes, image_channels=self.image_channels)


def write_page(
    folder: Path, out: Path | None = None, notes: tuple[str, ...] = (), image_channels: int | None = None
) -> Path:
    """Write the page of the run in `folder`, and return its path: `out`, or report.html in the folder.

    The file is replaced as a whole. notes: sentences at the top of the page. image_channels: needed only before the run
    has final pictures. Raises UserError if `folder` holds no run, and OSError if the page cannot be written.
    """
    out = out or folder / PAGE_FILE
    write_text(out, html_page.page(page_content(folder, load_config(folder), notes, image_channels)))
    return out


def page_content(
    folder: Path, config: RunConfig, notes: tuple[str, ...] = (), image_channels: int | None = None
) -> dict:
    """The data that page.html shows."""
    rows = MetricsLog(folder, print).rows()
    numbers = read_numbers(folder)
    report_command = command("report", folder, *import_flags(recorded_imports(folder)))
    charts = training_charts(rows)
    if numbers:
        charts = [*charts, *final_charts(numbers)]
        image_channels = numbers["frames_x_t"].shape[-1]
    else:
        notes = (*notes, f"The final pictures are made at the end of the run, or by: {report_command}")
    about_channels = channel_note(image_channels or 1)

    def with_note(part: dict | None) -> dict | None:
        return part and {**part, "text": f"{part['text']} {about_channels}".rstrip()}

    return {
        "title": folder.resolve().name,
        "subtitle": f"{config.network.name} on {config.data.dataset}, preset {config.preset}",
        "facts": facts(rows, numbers),
        "notes": list(notes),
        "grids": grids(folder, config, rows),
        "grids_text": f"{about_grids(config)} {about_channels}".rstrip(),
        "charts": charts,
        "reverse": with_note(numbers and reverse(numbers, report_command)),
        "nearest": with_note(numbers and nearest(numbers, report_command)),
        "pictures": [with_note(picture) for picture in pictures(folder, config, numbers, report_command)],
        "settings": settings(folder, config),
        "command": train_command(config, folder),
    }


def read_numbers(folder: Path) -> dict[str, np.ndarray] | None:
    """The numbers of the final pictures; None if there are none, or if the file is damaged."""
    try:
        with np.load(folder / "samples" / NUMBERS_FILE) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def drawn_with(folder: Path) -> tuple[int, bool] | None:
    """Step of the weights that the final pictures were drawn with, and whether they were raw; None without pictures."""
    numbers = read_numbers(folder)
    return None if numbers is None else (int(numbers["step"]), bool(numbers.get("are_raw", False)))


def facts(rows: list[dict], numbers: dict | None) -> list[tuple[str, str]]:
    """Names and values for the top of the page."""
    found = []
    if numbers:
        raw = " (raw, not EMA)" if numbers.get("are_raw", False) else ""
        found += [("Parameters", f"{numbers['num_parameters']:,}"), ("Weights of step", f"{numbers['step']:,}{raw}")]
    if rows:
        found.append(("Steps", f"{rows[-1]['step']:,}"))
        found.append(("Epochs", f"{rows[-1]['epoch'] + 1:,}"))
    losses = [row["loss"] for row in rows[-25:] if row["loss"] is not None]
    if losses:
        found.append(("Training loss", f"{np.mean(losses):.4g}"))
    held_out = [row for row in rows if row.get("validation_loss") is not None]
    if held_out:
        best = min(held_out, key=lambda row: row["validation_loss"])
        found.append((f"Best validation loss, step {best['step']:,}", f"{best['validation_loss']:.4g}"))
    for name in evaluated_features(rows):
        if scored := [row for row in rows if row.get(f"fid_{name}") is not None]:
            found.append((f"FID ({name}), step {scored[-1]['step']:,}", f"{scored[-1][f'fid_{name}']:.4g}"))
    if rows:
        found.append(("Images/s", f"{np.median([row['images_per_second'] for row in rows]):,.0f}"))
    return found


def about_grids(config: RunConfig) -> str:
    sampler = preview_sampler(config)
    return (
        "All grids start from the same noise; only the weights differ. "
        f"Drawn in {sampler.num_steps or CONTINUOUS_STEPS} steps with the sampler {sampler.sampler}."
        f"{about_labels(config)}"
    )


def about_labels(config: RunConfig) -> str:
    """What to know about the samples of a run with classes; "" for others."""
    if not config.network.label_count:
        return ""
    weight = config.sampling.guidance
    return " A row for each class" + ("." if weight == 1 else f", with guidance {weight:g}.")


def grids(folder: Path, config: RunConfig, rows: list[dict]) -> list[dict]:
    """The sample grids of the training, in order of their steps; at most MAX_GRIDS of them."""
    paths = {
        int(match[1]): path for path in (folder / "samples").glob("step-*.png") if (match := STEP.match(path.name))
    }
    steps = sorted(paths)
    steps = [steps[i] for i in evenly_spaced_indices(len(steps), MAX_GRIDS)] if steps else []
    validation = {row["step"]: row["validation_loss"] for row in rows if row.get("validation_loss") is not None}
    result = []
    for step in steps:
        picture = read_picture(paths[step])
        if picture is None:
            continue
        text = f"step {step:,}" + (f", validation loss {validation[step]:.4g}" if step in validation else "")
        image = html_page.image(picture, GRID_BYTES, f"Samples after {step:,} steps")
        result.append({**image, "text": text, "command": train_command(config, folder, sample_every=step)})
    return result


STEP = re.compile(r"step-(\d+)\.png$")


def reverse(numbers: dict, report_command: str) -> dict:
    """The states of the reverse process and the predicted x_0, as one image each, and a text per state."""
    sheets = (("x_t", "frames_x_t"), ("predicted x_0", "frames_x_0"))
    pairs = zip(numbers["frames_t"], numbers["frames_log_snr"], strict=True)
    symbol = numbers.get("level_symbol", "t")  # files of earlier versions have timesteps
    frames = [f"{symbol} = {level_text(t)}, logSNR {log_snr:+.1f}" for t, log_snr in pairs]
    frames[0] += " (x_T, pure noise)"
    return {
        "sheets": [
            {"name": name, "src": html_page.data_uri(html_page.sheet(numbers[key]), SHEET_BYTES)}
            for name, key in sheets
        ],
        "images": numbers["frames_x_t"].shape[1],
        "frames": [*frames, "x_0, the sample"],
        "text": "Top: the state x_t. Bottom: the predicted x_0. "
        "The states are evenly spaced in logSNR, the logarithm of the signal-to-noise ratio.",
        "command": report_command,
    }


def nearest(numbers: dict, report_command: str) -> dict | None:
    """Samples with their nearest training images; None if the data set was not available."""
    if "nearest_index" not in numbers:
        return None
    num_compared, num_train = int(numbers["num_compared"]), int(numbers["num_train"])
    text = (
        "This table shows whether samples are copies of training images. "
        "The number under each image is its root-mean-square pixel difference to the sample (0 to 255)."
    )
    if "held_out_distance" in numbers:
        median = float(np.median(numbers["held_out_distance"]))
        text += f" For held-out images, the median distance to the nearest training image is {median:.1f}."
    if num_compared < num_train:
        text += f" Only the first {num_compared:,} of {num_train:,} training images were compared."
    rows = []
    samples = numbers["frames_x_t"][-1]
    for number, (images, indices, distances) in enumerate(
        zip(numbers["nearest_images"], numbers["nearest_index"], numbers["nearest_distance"], strict=True)
    ):
        near = [
            {**tile(image, f"training image {index}"), "text": f"{distance:.1f}"}
            for image, index, distance in zip(images, indices, distances, strict=True)
        ]
        rows.append({"sample": tile(samples[number], f"sample {number}"), "near": near})
    return {"text": text, "rows": rows, "command": report_command}


def tile(image: np.ndarray, alt: str) -> dict:
    """One image uint8 (H, W, C) of the table, with the size at which it is shown: its longer side has TILE_PIXELS."""
    picture = html_page.sheet(image[None, None])
    width, height = (round(TILE_PIXELS * side / max(picture.size)) for side in picture.size)
    return {"src": html_page.data_uri(picture, TILE_BYTES), "width": width, "height": height, "alt": alt}


def pictures(folder: Path, config: RunConfig, numbers: dict | None, report_command: str) -> list[dict]:
    """The pictures of PICTURES whose files exist in the folder."""
    result, commands = [], {}
    if numbers:
        commands["grid.png"] = sample_command(config, folder, int(numbers["num_samples"]))
    for name, (title, text) in PICTURES.items():
        picture = read_picture(folder / "samples" / name)
        if picture is not None:
            text += about_labels(config) + about_count(config, numbers) if name == "grid.png" else ""
            image = html_page.image(picture, PICTURE_BYTES, f"{title}. {text}")
            result.append({**image, "title": title, "text": text, "command": commands.get(name, report_command)})
    return result


def about_count(config: RunConfig, numbers: dict | None) -> str:
    """Why there are fewer samples than num_samples, if there are."""
    count, wanted = int(numbers["num_samples"]) if numbers else 0, config.output.num_samples
    if not 0 < count < wanted:
        return ""
    return f" {count} of {wanted} images (num_samples): about as many as this machine draws in 50 seconds."


def read_picture(path: Path) -> Image.Image | None:
    """A picture, or None if the file does not exist or is damaged."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError):
        return None


def settings(folder: Path, config: RunConfig) -> list[dict]:
    """Sections, each with names and values: the run's settings, and its last start."""
    sections = {name: value for name, value in dataclasses.asdict(config).items() if isinstance(value, dict)}
    if starts := json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get(STARTS):
        sections["last start"] = starts[-1]
    return [
        {"name": name, "values": [[key, format_value(value)] for key, value in values.items()]}
        for name, values in sections.items()
    ]


def format_value(value) -> str:
    """A setting as text: "none", "yes", "no", or without JSON's brackets and quotes."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_value(inner)}" for key, inner in value.items())
    return " ".join(map(format_value, value)) if isinstance(value, list | tuple) else str(value)


def train_command(config: RunConfig, folder: Path, **output) -> str:
    """The command that repeats the training in another folder, with these fields of OutputConfig changed.

    "" for a network that the user registered in Python: the command cannot build it.
    """
    imports = recorded_imports(folder)
    if config.network.name not in BUILT_IN and not imports:
        return ""
    out = folder.with_name(f"{folder.name}-again")
    again = ("--config", folder / CONFIG_FILE, *import_flags(imports))
    return command("train", *again, *flags_of(output), "--out", out)


def sample_command(config: RunConfig, folder: Path, count: int) -> str:
    """The command that draws the samples of grid.png."""
    default = dataclasses.asdict(SamplerConfig())
    sampler = {name: value for name, value in dataclasses.asdict(config.sampling).items() if value != default[name]}
    flags = flags_of({**sampler, "num_images": count, "seed": config.training.seed, "out": "grid.png"})
    flags += ["--label-grid"] if config.network.label_count else []
    return command("sample", "--model", folder, *import_flags(recorded_imports(folder)), *flags)


def flags_of(fields: dict) -> list:
    """Fields of a settings class as flags and values."""
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in fields.items()}
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", *value)]


def command(name: str, *arguments) -> str:
    """A command line of `jax-ddpm`, quoted for the shell."""
    return shlex.join(["jax-ddpm", name, *map(str, arguments)])
