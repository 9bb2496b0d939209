"""Flags of labels and guidance of `jax-ddpm sample`, and what they mean for a model."""

from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from jax_ddpm.commands.flags import SamplerFlags
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.labels import NONE
from jax_ddpm.spec.model_info import ModelInfo

COLUMNS = 8  # pictures of each label, by default
FEW = 16  # the number of pictures is not raised for more classes than that


@dataclass(frozen=True)
class LabelFlags:
    """Which classes to draw, with a model that was trained with labels (train --conditional)."""

    labels: str | None = None
    """Classes by name or number, such as sneaker,7,bag, or none for no label: the pictures have them in turn. Default:
    all classes in turn; for edited images none."""
    label_grid: tyro.conf.FlagCreatePairsOff[bool] = False
    """Arrange the pictures with a row for each label; by default 8 of each."""
    guide: Path | None = None
    """A weaker model, away from which the pictures are guided (autoguidance; Karras et al. 2024): one that is smaller
    or was trained for fewer steps. Needs --guidance."""
    classifier: Path | None = None
    """A classifier of noisy images of guided-diffusion, such as 64x64_classifier.pt, that guides to the classes
    (Dhariwal & Nichol 2021). A model without labels then takes its classes as --labels. Not for edits of images."""
    classifier_scale: float = 1.0
    """Weight of the classifier's gradient."""
    classifier_setting: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE: a setting of the classifier that shapes do not show, such as num_head_channels=32. May be given
    several times."""

    @property
    def words(self) -> list[str] | None:
        """The labels as they are written; None if none are given. UserError for an empty one."""
        if self.labels is None:
            return None
        words = [word.strip() for word in self.labels.split(",")]
        if not all(words):
            raise UserError(f"labels = {self.labels}: expected names or numbers separated by commas, such as bag,7.")
        return words


@dataclass(frozen=True)
class GuidanceFlags(SamplerFlags):
    """Settings of the sampler."""

    guidance: tuple[float, ...] = (1.0,)
    """Weight w of guidance: no label + w (label - no label) (Ho & Salimans 2022). 1: none. Larger: closer to the label,
    with less variety. Several weights: a column for each, in a .png."""

    @property
    def samplers(self) -> list[SamplerFlags]:
        """The settings for each weight."""
        if not self.guidance:
            raise UserError("--guidance: expected a weight, such as 2.")
        others = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "guidance"}
        return [SamplerFlags(**others, guidance=weight) for weight in self.guidance]


def check_label_flags(flags) -> None:
    """UserError for flags of labels and guidance that cannot be combined."""
    several, label = len(flags.sampling.samplers) > 1, flags.label
    if label.classifier is not None and flags.editing.kind is not None:
        raise UserError(
            f"--classifier guides pictures that are drawn from noise. Leave it or {flags.editing.kind} out."
        )
    if label.classifier is None and label.classifier_setting:
        raise UserError("--classifier-setting needs a classifier: give --classifier FILE.")
    if label.classifier is None and label.classifier_scale != 1:
        raise UserError(f"--classifier-scale {label.classifier_scale:g} needs a classifier: give --classifier FILE.")
    if several and (flags.editing.kind is not None or flags.out.suffix != ".png"):
        what = flags.editing.kind or f"--out {flags.out}"
        raise UserError(f"Several weights of --guidance are columns of a .png, which {what} is not: give one weight.")
    if several and flags.label.label_grid:
        raise UserError("--label-grid and several weights of --guidance do not go together: each is the columns.")
    if flags.label.label_grid and (flags.editing.kind is not None or flags.out.suffix not in (".png", ".gif")):
        raise UserError("--label-grid arranges pictures that are drawn from noise in a .png or .gif: leave it out.")


def check_labels(flags, info: ModelInfo) -> None:
    """Say what was assumed. UserError for --label-grid with a model without labels."""
    label, kind = flags.label, flags.editing.kind
    if label.label_grid and not info.network.takes_labels:
        raise UserError("--label-grid: this model was trained without labels. Leave it out.")
    if info.network.label_count and label.labels is None:
        if kind is None:
            print("Labels: the classes in turn. --labels chooses them.")
        else:
            print("Labels: none, since images are edited. --labels chooses one.")
    for sampler in flags.sampling.samplers:
        if sampler.guidance < 0:
            print(f"Guidance {sampler.guidance:g} is below 0: it leads away from the label.")


def default_count(flags, info: ModelInfo) -> int | None:
    """The number of pictures that the labels ask for; None if they do not."""
    words, count = flags.label.words, info.network.label_count
    if not info.network.takes_labels or flags.editing.kind is not None:
        return None
    number = len(words) if words else count
    if flags.label.label_grid:
        return number and COLUMNS * number
    if len(flags.sampling.guidance) > 1:
        return number and min(number, FEW)
    return number if words and number > 1 else None


def labels_to_draw(flags, info: ModelInfo, num_images: int) -> list[str] | str | None:
    """The argument `labels` of the package's functions, for N pictures."""
    words = flags.label.words
    if words is None or len(words) == 1:
        return words and words[0]
    if flags.editing.kind == "--interpolate":
        if len(words) != 2:
            raise UserError(f"labels = {flags.label.labels}: --interpolate takes one label, or two to go between.")
        return words
    return [words[i % len(words)] for i in range(num_images)]


def names_of(info: ModelInfo) -> tuple[str, ...]:
    """The names of the labels 0, 1, ..., for pictures: numbers where the model has none."""
    names = info.class_names or tuple(map(str, range(info.network.label_count or 0)))
    return (*names, NONE) if info.network.null_index == len(names) else names
