"""report.html: the page of a run, from what lies in its folder. Loads no network and needs no data set."""

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

from jax_ddpm.report import html_page
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.presets import PRESETS
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training.pictures import CLOSING_FILE, along, evenly_spaced_indices
from jax_ddpm.training.run_charts import closing_charts, training_charts
from jax_ddpm.training.run_folder import CONFIG_FILE, STARTS, MetricsLog, load_config

PAGE_FILE = "report.html"
APART = 60  # seconds at least between two versions while the run goes on
GRIDS = 12  # over the training, at most
GRID_BYTES, SHEET_BYTES, PICTURE_BYTES, TILE_BYTES = 110_000, 600_000, 180_000, 6_000  # so that all stay under 5 MB
PICTURES = {
    "grid.png": ("Samples", "As the run's own sampler draws them, in all its steps."),
    "data.png": ("Training images", "The first of them."),
    "forward.png": ("The forward process", "Noise added to training images, up to pure noise."),
    "reverse.png": ("The reverse process, as a strip", "From noise to samples, columns evenly spaced in logSNR."),
    "x0.png": ("Predicted x_0", "Each state x_t, and under it the picture that the network takes it for."),
}


class Page:
    """The page of a run that is going on."""

    def __init__(self, folder: Path):
        self.folder, self.written = folder, -math.inf

    def refresh(self) -> None:
        """Write it anew, if the last time is a minute ago."""
        if time.monotonic() - self.written >= APART:
            self.written = time.monotonic()
            write_page(self.folder, notes=("This run is going on, or was broken off.",))


def write_page(folder: Path, out: Path | None = None, notes: tuple[str, ...] = ()) -> Path:
    """Write the page of the run in `folder`, whole or not at all, and return its path (default: report.html there).

    notes: sentences for its head. Raises UserError where there is no run, OSError where the page cannot be written.
    """
    out = out or folder / PAGE_FILE
    write_text(out, html_page.page(content(folder, load_config(folder), notes)))
    return out


def content(folder: Path, config: RunConfig, notes: tuple[str, ...] = ()) -> dict:
    """What page.html draws."""
    rows = MetricsLog(folder, print).rows()
    closing = read_closing(folder)
    again = command("scripts/report.py", folder)
    parts = {"charts": [*training_charts(rows)], "reverse": None, "nearest": None}
    if closing:
        parts["charts"] += closing_charts(closing)
        parts["reverse"] = reverse(closing, again)
        parts["nearest"] = nearest(closing, again)
    else:
        notes = (*notes, "The closing pictures are made at the end of the run, or by the command of this page.")
    return {
        "title": folder.resolve().name,
        "subtitle": f"{config.network.name} on {config.data.dataset}, preset {config.preset}",
        "facts": facts(rows, closing),
        "notes": list(notes),
        "grids": grids(folder, config, rows),
        "grids_text": about_grids(config),
        **parts,
        "pictures": pictures(folder, config, closing, again),
        "settings": settings(folder, config),
        "command": train_command(config, folder),
    }


def read_closing(folder: Path) -> dict[str, np.ndarray] | None:
    """The numbers of the closing pictures; None where there are none, or a broken file."""
    try:
        with np.load(folder / "samples" / CLOSING_FILE) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def facts(rows: list[dict], closing: dict | None) -> list[tuple[str, str]]:
    """Names and values for the head of the page."""
    told = []
    if closing:
        told += [("Parameters", f"{closing['num_parameters']:,}"), ("Weights of step", f"{closing['step']:,}")]
    if rows:
        told.append(("Steps", f"{rows[-1]['step']:,}"))
        told.append(("Epochs", f"{rows[-1]['epoch'] + 1:,}"))
    losses = [row["loss"] for row in rows[-25:] if row["loss"] is not None]
    if losses:
        told.append(("Training loss", f"{np.mean(losses):.4g}"))
    held_out = [row for row in rows if row.get("validation_loss") is not None]
    if held_out:
        best = min(held_out, key=lambda row: row["validation_loss"])
        told.append((f"Best validation, step {best['step']:,}", f"{best['validation_loss']:.4g}"))
    if rows:
        told.append(("Images/s", f"{np.median([row['images_per_second'] for row in rows]):,.0f}"))
    return told


def about_grids(config: RunConfig) -> str:
    sampler = along(config)
    return (
        "Always the same starting noise, so that only the weights differ from grid to grid. "
        f"Drawn in {sampler.num_steps} steps by the sampler {sampler.sampler}."
    )


def grids(folder: Path, config: RunConfig, rows: list[dict]) -> list[dict]:
    """The sample grids over the training, in order of their steps."""
    found = {
        int(match[1]): path for path in (folder / "samples").glob("step-*.png") if (match := STEP.match(path.name))
    }
    steps = sorted(found)
    steps = [steps[i] for i in evenly_spaced_indices(len(steps), GRIDS)] if steps else []
    validation = {row["step"]: row["validation_loss"] for row in rows if row.get("validation_loss") is not None}
    shown = []
    for step in steps:
        picture = read_picture(found[step])
        if picture is None:
            continue
        text = f"step {step:,}" + (f", validation loss {validation[step]:.4g}" if step in validation else "")
        how = train_command(config, folder, sample_every=step)
        shown.append(
            {**html_page.image(picture, GRID_BYTES, f"Samples after {step:,} steps"), "text": text, "command": how}
        )
    return shown


STEP = re.compile(r"step-(\d+)\.png$")


def reverse(closing: dict, again: str) -> dict:
    sheets = (("x_t", "frames_x_t"), ("predicted x_0", "frames_x_0"))
    pairs = zip(closing["frames_t"], closing["frames_log_snr"], strict=True)
    middle = [f"t = {t}, logSNR {log_snr:+.1f}" for t, log_snr in pairs]
    middle[0] += " (x_T, pure noise)"
    return {
        "sheets": [
            {"name": name, "src": html_page.data_uri(html_page.sheet(closing[key]), SHEET_BYTES)}
            for name, key in sheets
        ],
        "images": closing["frames_x_t"].shape[1],
        "frames": [*middle, "x_0, the sample"],
        "text": "Above, the state x_t; below, the picture that the network takes it for (the predicted x_0). The "
        "states are evenly spaced in logSNR, the logarithm of the ratio of signal to noise.",
        "command": again,
    }


def nearest(closing: dict, again: str) -> dict | None:
    """Samples beside the training images that are nearest to them; None where the data was not there."""
    if "nearest_index" not in closing:
        return None
    compared, all_of_them = int(closing["num_compared"]), int(closing["num_train"])
    text = (
        "To see whether samples are copies: under each image its distance to the sample, the root of the mean squared "
        "difference of the pixels in levels from 0 to 255."
    )
    if "held_out_distance" in closing:
        typical = float(np.median(closing["held_out_distance"]))
        text += f" Held-out images, which the training never saw, are {typical:.1f} from their nearest (the median)."
    if compared < all_of_them:
        text += f" Compared were the first {compared:,} of {all_of_them:,} training images."
    rows = []
    samples = closing["frames_x_t"][-1]
    for number, (images, indices, distances) in enumerate(
        zip(closing["nearest_images"], closing["nearest_index"], closing["nearest_distance"], strict=True)
    ):
        near = [
            {**tile(image, f"training image {index}"), "text": f"{distance:.1f}"}
            for image, index, distance in zip(images, indices, distances, strict=True)
        ]
        rows.append({"sample": tile(samples[number], f"sample {number}"), "near": near})
    return {"text": text, "rows": rows, "command": again}


def tile(image: np.ndarray, alt: str) -> dict:
    return {"src": html_page.data_uri(html_page.sheet(image[None, None]), TILE_BYTES), "alt": alt}


def pictures(folder: Path, config: RunConfig, closing: dict | None, again: str) -> list[dict]:
    """What of PICTURES lies in the folder."""
    shown, commands = [], {}
    if closing:
        commands["grid.png"] = sample_command(config, folder, int(closing["num_samples"]))
    for name, (title, text) in PICTURES.items():
        picture = read_picture(folder / "samples" / name)
        if picture is not None:
            image = html_page.image(picture, PICTURE_BYTES, f"{title}. {text}")
            shown.append({**image, "title": title, "text": text, "command": commands.get(name, again)})
    return shown


def read_picture(path: Path) -> Image.Image | None:
    """None where there is none, or a broken one."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError):
        return None


def settings(folder: Path, config: RunConfig) -> list[dict]:
    """By section, names and values; the last start of the run is one of them."""
    sections = {name: value for name, value in dataclasses.asdict(config).items() if isinstance(value, dict)}
    if starts := json.loads((folder / CONFIG_FILE).read_text()).get(STARTS):
        sections["last start"] = starts[-1]
    return [
        {"name": name, "values": [[key, plain(value)] for key, value in values.items()]}
        for name, values in sections.items()
    ]


def plain(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    return " ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)


def train_command(config: RunConfig, folder: Path, **output) -> str:
    """The command that repeats the training, in another folder, with these fields of OutputConfig.

    "" for a network of one's own, which the command does not know.
    """
    if all(recipe.network.name != config.network.name for recipe in PRESETS.values()):
        return ""
    again = ("--out", folder.with_name(f"{folder.name}-again"))
    return command("scripts/train_jax.py", "--config", folder / CONFIG_FILE, *flags_of(output), *again)


def sample_command(config: RunConfig, folder: Path, count: int) -> str:
    """The command that draws the closing samples."""
    usual = dataclasses.asdict(SamplerConfig())
    sampler = {name: value for name, value in dataclasses.asdict(config.sampling).items() if value != usual[name]}
    flags = flags_of({**sampler, "num_images": count, "seed": config.training.seed, "out": "grid.png"})
    return command("scripts/sample.py", "--model", folder, *flags)


def flags_of(fields: dict) -> list:
    return [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", value)]


def command(script: str, *arguments) -> str:
    return shlex.join(["python", script, *map(str, arguments)])
