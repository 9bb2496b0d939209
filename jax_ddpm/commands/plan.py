"""`jax-ddpm plan`: compile a run for chips that this machine does not have, and print what it needs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from jax_ddpm.commands.flags import ImportFlag, parse
from jax_ddpm.plan.target import parse_target
from jax_ddpm.process import prepare_process
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.image_size import height_and_width
from jax_ddpm.spec.presets import PRESETS, preset
from jax_ddpm.spec.run_config import RunConfig

EXAMPLES = (
    "conv_block --target h100:8 --batch-size 512 --precision bfloat16",
    "ddpm --target v5e:4x4 --batch-size 2048 --remat",
    "conv_block --target h100:1 --what sample --sampler ddim --num-steps 50 --plan-images 1000",
)
DATA_SETS = {"digits": (1617, 1), "mnist": (60000, 1), "fashion_mnist": (60000, 1), "cifar10": (50000, 3)}
"""Training images and channels of the data sets that the presets name."""
CLASSES = 10  # that all of them have


@dataclass(frozen=True)
class PlanFlags:
    """Compile a run for GPUs or TPUs that this machine does not have: memory, work, and what bounds a step.

    Nothing is trained, and no data is read. The program is the one that training or sampling with the same flags runs.
    """

    chosen: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRESET")] = "digits"
    """Preset that the other settings start from."""
    target: str = "cpu"
    """What to compile for: cpu, h100:N (N GPUs), or TPU chips in their arrangement: v5e:4x4, v6e:AxB, v5p:AxBxC. Needs
    the compiler of that chip: the extra aot-gpu or aot-tpu."""
    what: Literal["train", "sample"] = "train"
    """The training step, or the sampler."""
    plan_images: int | None = None
    """Number of images: of the data set (train; default: what the preset's data set has), or drawn at a time (sample;
    default: 64)."""
    plan_channels: int | None = None
    """Channels of the images. Default: those of the preset's data set."""
    imports: ImportFlag = ()
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def main(arguments: Sequence[str], prog: str) -> None:
    arguments = list(arguments)
    named = arguments[0] if arguments and not arguments[0].startswith("-") else "digits"
    default = preset(named if named in PRESETS else None)
    flags = parse(PlanFlags, arguments, prog, EXAMPLES, PlanFlags(config=default), (tyro.conf.AvoidSubcommands,))
    require(named == flags.chosen, "preset", flags.chosen, "expected it as the first argument")
    preset(named)  # raises UserError with the list of presets if the name is unknown
    target, (images, channels) = parse_target(flags.target), image_counts(flags)
    config = with_classes(flags.config)
    config.check()
    os.environ["JAX_PLATFORMS"] = "cpu"  # a GPU of this machine is not used
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no warnings that compiling takes long
    prepare_process()
    import jax  # here, so that --help and flag errors appear at once

    from jax_ddpm.plan.plan import plan

    if target.chip:
        jax.config.update("jax_enable_compilation_cache", False)  # it cannot read programs for chips that are not here
    if config.training.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    shape = (*height_and_width(config.data.image_size), channels)
    for line in plan(config, target, flags.what, images, shape):
        print(line, flush=True)


def image_counts(flags: PlanFlags) -> tuple[int, int]:
    """(number of images, channels) of the program, from the flags and what is known of the data set."""
    dataset = flags.config.data.dataset
    images, channels = DATA_SETS.get(dataset, (None, None))
    images = flags.plan_images or (images if flags.what == "train" else 64)
    channels = flags.plan_channels or channels
    if images is None or channels is None:
        raise UserError(f"The images of {dataset} are not read: give --plan-images and --plan-channels.")
    require(images >= 1 and channels >= 1, "plan_images", images, "expected at least 1, and as many channels")
    return images, channels


def with_classes(config: RunConfig) -> RunConfig:
    """The settings, with the classes of the data set if the run is conditional and its network names none."""
    if not config.training.conditional or config.network.label_count:
        return config
    return replace(config, network=config.network.with_classes(CLASSES))
