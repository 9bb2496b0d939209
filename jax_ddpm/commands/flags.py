"""What the commands share: parsing dataclasses as flags, and flags that several commands have."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.types import Clip, Objective, Schedule, Variance


def parse(kind, arguments: Sequence[str], prog: str, default=None, config: tuple = ()):
    """An object of the dataclass `kind` from flags; ends the process at --help and at flags that do not parse.

    prog: the command as the user called it. default: an object whose values the flags replace.
    """
    default = {} if default is None else {"default": default}
    return tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.OmitArgPrefixes, *config), **default)


@dataclass(frozen=True)
class DiffusionFlags:
    """What overrules the model file, or what it cannot tell; by default its own, or its network's preset."""

    timesteps: int | None = None
    """T of the training."""
    schedule: Schedule | None = None
    """Noise schedule of the training."""
    beta_start: float | None = None
    beta_end: float | None = None
    objective: Objective | None = None
    """What the network predicts."""
    variance: Variance | None = None
    """Variance of a reverse step."""
    clip: Clip | None = None
    """Clip the predicted x_0 (x0), threshold it (dynamic), clamp every x_t (state), or neither."""
    clip_percentile: float | None = None
    """Of dynamic thresholding: the share of an image's pixels that are not clipped."""


def integers(text: str) -> list[int]:
    """3,7,11 as a list; UserError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"seeds = {text}: expected integers with commas between them, such as 3,7,11.") from None
