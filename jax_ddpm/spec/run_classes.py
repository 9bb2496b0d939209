"""The classes of a conditional training: from the data set's labels to the network's settings."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.read_run import CONFIG_FILE, read_config
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.spec.text import some


class LabelledImages(Protocol):
    """What is read off a `jax_ddpm.data.ImageData`."""

    name: str
    labels: Any
    validation_labels: Any
    class_names: tuple[str, ...] | None


def with_classes(config: RunConfig, images: LabelledImages) -> RunConfig:
    """The settings of a run whose network has the classes of its images, if the run is conditional.

    Raises UserError for images without labels, a network that takes no labels, or one with another number of classes.
    """
    if not config.training.conditional:
        return config
    if images.labels is None or not images.class_names:
        raise UserError(
            f"--conditional needs a class for each image, and {images.name} has none.\n"
            "Give images with labels (folders by class, a .npz with labels), or omit --conditional."
        )
    network, count = config.network, len(images.class_names)
    if network.label_width is not None or not network.label_count:
        network = network.with_classes(count)
    elif network.label_count != count:
        raise UserError(
            f"The network has {network.label_count} classes, but {images.name} has {count}.\n"
            "Leave the number out: --conditional takes it from the images."
        )
    return replace(config, network=network)


def with_classes_of_run(config: RunConfig, folder: Path) -> RunConfig:
    """The settings of a run to resume, with the classes that its network has in config.json.

    So a conditional run can be resumed with the settings that it was started with, which do not know the classes.
    """
    if not (config.training.conditional and not config.network.label_count and (folder / CONFIG_FILE).is_file()):
        return config
    count = read_config(folder / CONFIG_FILE).network.label_count
    return replace(config, network=config.network.with_classes(count)) if count else config


def check_takes_labels(config: RunConfig, call: Callable) -> None:
    """Raise UserError if a conditional run's network has no argument `labels`. call: its __call__ or forward."""
    if config.training.conditional and "labels" not in inspect.signature(call).parameters:
        raise UserError(
            f"The network {config.network.name} is called without labels: its settings have num_classes.\n"
            "Give its call an argument labels: (x, t, labels=None), or omit --conditional."
        )


def describe_classes(config: RunConfig, class_names: tuple[str, ...]) -> str:
    """One line about the classes of a conditional run."""
    names = f"Conditional on {len(class_names)} classes: {some(list(class_names), 12, 24)}."
    if config.network.null_index is None:
        return f"{names} There is no null label, so guidance needs a second model."
    return f"{names} A label is dropped with probability {config.training.label_dropout:g}, for guidance."
