"""The folder of a run as the Hugging Face Hub gets it: weights, settings, a model card and pictures."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from jax_ddpm.spec.data_record import path_of
from jax_ddpm.spec.diffusion_config import CONTINUOUS_STEPS
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.model_folder import MODEL_FILE, unfinished
from jax_ddpm.spec.model_info import describe
from jax_ddpm.spec.network_config import BUILT_IN
from jax_ddpm.spec.read_run import CONFIG_FILE
from jax_ddpm.spec.run_config import RunConfig, slug
from jax_ddpm.training.compare import ComparedRun, figures_table, open_run
from jax_ddpm.training.run_folder import flatten
from jax_ddpm.training.run_page import format_value
from jax_ddpm.weights.model import Model

CARD = "README.md"
PICTURES = {"grid.png": "Samples", "reverse.png": "The reverse process, from noise to samples", "loss.png": "The loss"}
"""The pictures of a run that go with it: none of them shows training images."""
FOLDERS = re.compile(r"(?:\b[A-Za-z]:)?(?:[/\\][^/\\]+)+[/\\]")
"""The folders in an absolute path, which figures name with the images that a model was compared with."""
LICENSE = "# license: mit  # remove the first # and choose: https://huggingface.co/docs/hub/repositories-licenses"


def write_hub_folder(run: Path, folder: Path, name: str, log: Callable[[str], None] = print) -> None:
    """Write what `load_model` needs of a run, and a model card.

    model.safetensors is the run's. config.json has its settings without paths and without descriptions of machines.
    README.md is the card.

    Args:
        run: the folder of a run.
        folder: a new or empty folder.
        name: OWNER/NAME, for the card.

    Raises:
        UserError: no run, a run without weights yet, or a folder that is not empty or cannot be written.
    """
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} is no run: expected the folder of a training, which holds {CONFIG_FILE}.")
    if not (run / MODEL_FILE).is_file():
        raise UserError(unfinished(run))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose a new or empty folder.")
    opened = open_run(run, run.resolve().name, log)
    if opened.model is None:
        raise UserError(opened.problem)
    pictures = [file for file in PICTURES if (run / "samples" / file).is_file()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / MODEL_FILE, folder / MODEL_FILE)
        for file in pictures:
            shutil.copyfile(run / "samples" / file, folder / file)
        settings = asdict(without_paths(opened.config))
        write_text(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")
        write_text(folder / CARD, model_card(opened, opened.model, name, pictures))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from None


def without_paths(config: RunConfig) -> RunConfig:
    """The settings without the places of files on this computer."""
    data = replace(config.data, data_dir=None, manual_dir=None, cache_dir=None)
    if path_of(data.dataset) is not None:
        data = replace(data, dataset=public_name(data.dataset))
    return replace(config, data=data, training=replace(config.training, init_from=None))


def public_name(dataset: str) -> str:
    """A data set's name without the folders that its files lie in."""
    return f"folder:{slug(dataset).removeprefix('folder-')}" if dataset.startswith("folder:") else slug(dataset)


def model_card(run: ComparedRun, model: Model, name: str, pictures: Sequence[str]) -> str:
    """The text of README.md: front matter, how to sample, settings, figures, pictures."""
    config, info = without_paths(run.config), model.info
    front = ["library_name: jax_ddpm", "tags: [diffusion, ddpm, jax, flax]"]
    if not info.class_names:
        front += ["pipeline_tag: unconditional-image-generation"]
    height, width, channels = info.image_shape
    kind = {1: "gray", 3: "RGB"}.get(channels, f"{channels}-channel")
    usual_steps = CONTINUOUS_STEPS if info.diffusion.is_continuous else info.diffusion.timesteps
    steps = config.sampling.num_steps or usual_steps
    parts = [
        "\n".join(["---", *front, LICENSE, "---", ""]),
        f"# {name.partition('/')[2]}\n",
        f"A denoising diffusion model of {kind} images, {height} pixels high and {width} wide. It was trained on "
        f"`{config.data.dataset}` with jax_ddpm: {describe(info, model.num_parameters)}.\n",
    ]
    parts += picture(pictures, "grid.png")
    parts += [
        f"Drawn with the sampler {config.sampling.sampler} in {steps} steps.\n" if "grid.png" in pictures else "",
        "## Draw samples\n",
        how_to_sample(run, model, name),
        "## Settings\n",
        table(("setting", "value"), settings_of(config, info.step)),
        f"`{CONFIG_FILE}` has all settings: `jax-ddpm train --config {CONFIG_FILE} --out runs/again` repeats the "
        "training.\n",
        "## Figures\n",
        table(("figure", "value"), [[FOLDERS.sub("", cell) for cell in row] for row in figures_table([run])]),
    ]
    for file in pictures:
        parts += picture(pictures, file) if file != "grid.png" else []
    return "\n".join(part for part in parts if part)


def how_to_sample(run: ComparedRun, model: Model, name: str) -> str:
    """The commands that draw samples, and what is needed besides for labels and for a network of one's own."""
    network, names = run.config.network.name, model.info.class_names
    labels = ", labels=[0, 1]" if names else ""
    text = (
        "```bash\npip install 'jax-ddpm[hub]'\n"
        f"jax-ddpm sample --model {name} --num-images 16 --out samples.png\n```\n\n"
        f'```python\nimport jax_ddpm\n\nimages = jax_ddpm.sample("{name}", {2 if names else 16}{labels})\n```\n\n'
        f'In PyTorch: `torch_ref.sample("{name}", {2 if names else 16}{labels})`.\n'
    )
    if names:
        text += f"\nIts classes: {', '.join(f'{number} {each}' for number, each in enumerate(names))}.\n"
    if network not in BUILT_IN:
        text += f"\nThe network `{network}` is its author's: add `--import FILE.py` with the code that registers it.\n"
    return text


def settings_of(config: RunConfig, step: int | None) -> list[list[str]]:
    """The settings that a reader asks for first."""
    training = config.training
    rows = [["preset", config.preset], ["data set", config.data.dataset], ["network", config.network.name]]
    rows += [["steps of the weights", "unknown" if step is None else f"{step:,}"]]
    rate = f"{training.learning_rate:g}, {training.lr_schedule}"
    rows += [["batch size", str(training.batch_size)], ["learning rate", rate], ["optimizer", training.optimizer]]
    rows += [["weights", f"EMA, decay {training.ema_decay:g}" if training.ema else "raw"]]
    rows += [["precision", training.precision], ["seed", str(training.seed)]]
    flat = flatten(config)
    return rows + [[name, format_value(flat[f"diffusion.{name}"])] for name in ("objective", "schedule", "timesteps")]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell.strip().replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def picture(pictures: Sequence[str], file: str) -> list[str]:
    return [f"![{PICTURES[file]}]({file})\n"] if file in pictures else []
