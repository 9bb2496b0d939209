"""`jax-ddpm train`: train a model, resume a run, or replay one of its steps."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jax_ddpm.commands.flags import ImportFlag, parse
from jax_ddpm.commands.own_code import values_of
from jax_ddpm.process import check_devices
from jax_ddpm.spec.diffusion_config import CONTINUOUS
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.flat_settings import parts_by_field, similar
from jax_ddpm.spec.image_size import height_and_width
from jax_ddpm.spec.presets import PRESETS, preset
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training import run_folder
from jax_ddpm.training.start_hosts import HostFlags, join, left_by_all

FULL_SIZE = ("conv_block", "strided", "attention", "ddpm")  # presets whose networks want an accelerator
EXAMPLES = (
    "--dataset fashion_mnist --preset tiny",
    "--resume --out runs/digits-digits --epochs 120",
    "--sweep seed=0,1,2 learning_rate=1e-4,2e-4",
)


@dataclass(frozen=True)
class RunFlags:
    """Train a DDPM. Without flags: on the handwritten digits that come with scikit-learn."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run. Default: runs/DATASET-PRESET."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --out where it stopped. Flags that are not given come from its config.json."""
    replay_step: int | None = None
    """Run this step of the run in --out again, starting from the newest checkpoint before it, and print its details."""
    settings: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """Repeat a run: flags that are not given come from this config.json."""
    hosts: Annotated[HostFlags, tyro.conf.arg(name="")] = field(default_factory=HostFlags)
    imports: ImportFlag = ()
    sweep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,... [...]", help_behavior_hint="")] = ()
    """Train once for each value of this setting, one run after another, and compare the runs on a page. Several names:
    once for each combination. --out is the folder of all runs. The same command again goes on where it stopped."""
    list_presets: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the presets and exit."""


def main(arguments: Sequence[str], prog: str) -> None:
    if values_of("sweep", arguments):
        from jax_ddpm.commands.train_sweep import sweep  # which imports this module

        sweep(arguments, prog)
        return
    flags = parse_run(arguments, prog)
    hosts = flags.hosts.resolved(os.environ)
    if flags.replay_step is not None:
        if hosts.distributed:
            raise UserError("--replay-step repeats a step in one process: omit --distributed.")
        from jax_ddpm.training.replay import replay

        replay(flags.config, flags.out, flags.replay_step)
    else:
        from jax_ddpm.training.loop import train  # imported here so that --help and flag errors appear at once

        join(flags.hosts)
        with left_by_all() if hosts.distributed else nullcontext():
            if not flags.resume and is_long_on_cpu(flags.config) and is_first_process():
                print(
                    f"The full-size {flags.config.preset} network is a job for a GPU or a TPU, and JAX finds only a "
                    "CPU.\n--preset tiny trains a small network on the same data."
                )
            train(flags.config, flags.out, flags.resume)


def is_first_process() -> bool:
    import jax

    return jax.process_index() == 0


def is_long_on_cpu(config: RunConfig) -> bool:
    """Whether the network is a preset's full-size one, and JAX computes on the CPU."""
    import jax

    check_devices()
    full_size = config.preset in FULL_SIZE and config.network == PRESETS[config.preset].network
    return full_size and jax.default_backend() == "cpu"


def parse_run(
    arguments: Sequence[str],
    prog: str,
    default_out: Callable[[RunConfig], Path] = run_folder.default_out,
    examples: Sequence[str] = EXAMPLES,
) -> RunFlags:
    """The flags of a training command: defaults from the preset, or from the run that is resumed."""
    arguments = with_folder_to_resume(arguments)
    name, dataset, out = (value_of(flag, arguments) for flag in ("preset", "dataset", "out"))
    default = preset(name if name in PRESETS else None, dataset)
    settings, replayed = value_of("config", arguments), value_of("replay-step", arguments) is not None
    if "--resume" in arguments or replayed:
        if settings:
            raise UserError(
                "--config starts a new run, --resume and --replay-step continue one: give only one of them."
            )
        default = run_folder.load_config(Path(out) if out else default_out(default))
    elif settings:
        default = run_folder.read_config(Path(settings))
    if (objective := value_of("objective", arguments)) in CONTINUOUS:
        default = default.with_(objective=objective)  # which chooses a sampler for it
    check_initials(arguments, default)
    flags = parse(RunFlags, arguments, prog, examples, RunFlags(default), (tyro.conf.AvoidSubcommands,))
    if flags.list_presets:
        print(table_of_presets())
        sys.exit()
    preset(flags.config.preset)  # raises UserError with the list of presets if the name is unknown
    flags.config.check()
    if replayed:
        run_folder.check_folder(flags.out or default_out(flags.config), flags.config, resume=True)
    return flags


def with_folder_to_resume(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--resume --out FOLDER` in place of `--resume FOLDER`."""
    arguments = list(arguments)
    if "--resume" in arguments and not values_of("out", arguments):
        following = arguments.index("--resume") + 1
        if following < len(arguments) and not arguments[following].startswith("-"):
            arguments.insert(following, "--out")
    return arguments


def check_initials(arguments: Sequence[str], config: RunConfig) -> None:
    """UserError for a flag that is the initials of another one, such as --lr."""
    known = parts_by_field(config)
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--")
        if argument.startswith("--") and len(name) == 2 and (near := similar(name, known)):
            raise UserError(f"There is no flag --{name}: did you mean --{near.replace('_', '-')}?")


def table_of_presets() -> str:
    """Network, data, image, parameters and training of each preset, in columns."""
    from flax import nnx

    from jax_ddpm import unets, weights

    check_devices()
    rows = [("preset", "network", "data", "image", "parameters", "training")]
    for name, recipe in ((name, preset(name)) for name in PRESETS):
        channels = 3 if recipe.data.dataset == "cifar10" else 1
        network = unets.build(recipe.network, channels)
        parameters = sum(math.prod(e.shape) for e in weights.torch_arrays(network) if isinstance(e.variable, nnx.Param))
        image = "x".join(map(str, (*height_and_width(recipe.data.image_size), channels)))
        training = recipe.training
        length = f"{training.steps:,} steps" if training.steps else f"{training.epochs} epochs"
        how = f"{length}, batch {training.batch_size}, {training.optimizer} {training.learning_rate:g}"
        rows.append((name, recipe.network.name, recipe.data.dataset, image, f"{parameters:,}", how))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value given to --flag; the last one counts."""
    return (values_of(flag, arguments) or [None])[-1]
