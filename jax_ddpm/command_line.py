"""What the commands in `scripts/` share: flags from dataclasses, and errors without a traceback."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_ddpm.compilation import keep_compiled
from jax_ddpm.config import Clip, Objective, RunConfig, Schedule, Variance
from jax_ddpm.errors import UserError
from jax_ddpm.cpu.memory import keep_freed_memory
from jax_ddpm.presets import PRESETS, preset
from jax_ddpm.training import run_folder
from jax_ddpm.training.interrupt import Interrupted
from torch_ref.errors import UserError as TorchUserError


@dataclass(frozen=True)
class RunFlags:
    """Train a DDPM; without flags, on the handwritten digits that scikit-learn ships."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run. Default: runs/DATASET-PRESET."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --out where it stopped; flags that are not given come from its config.json."""
    replay_step: int | None = None
    """Run this step of the run in --out again, from the newest checkpoint before it, and tell what happens in it."""
    settings: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """Repeat a run: flags that are not given come from this config.json."""
    list_presets: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the presets and end."""


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


def parse_run(
    arguments: Sequence[str] | None = None, default_out: Callable[[RunConfig], Path] = run_folder.default_out
) -> RunFlags:
    """The flags of a training command: defaults from the preset, or from the run that is resumed."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name, dataset, out = (value_of(flag, arguments) for flag in ("preset", "dataset", "out"))
    default = preset(name if name in PRESETS else None, dataset)
    settings, replayed = value_of("config", arguments), value_of("replay-step", arguments) is not None
    if "--resume" in arguments or replayed:
        if settings:
            raise UserError("--config starts another run, and --resume and --replay-step go on with one: choose.")
        default = run_folder.load_config(Path(out) if out else default_out(default))
    elif settings:
        default = run_folder.read_config(Path(settings))
    markers = (tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands)
    flags = tyro.cli(RunFlags, args=arguments, default=RunFlags(default), config=markers)
    if flags.list_presets:
        print(table_of_presets())
        sys.exit()
    preset(flags.config.preset)  # names the known ones if it is none of them
    flags.config.check()
    if replayed:
        run_folder.check_folder(flags.out or default_out(flags.config), flags.config, resume=True)
    return flags


def table_of_presets() -> str:
    """Network, data, image, parameters and training of each preset, in columns."""
    from flax import nnx

    from jax_ddpm import unets, weights

    rows = [("preset", "network", "data", "image", "parameters", "training")]
    for name, recipe in ((name, preset(name)) for name in PRESETS):
        channels = 3 if recipe.data.dataset == "cifar10" else 1
        network = unets.build(recipe.network, channels)
        parameters = sum(math.prod(e.shape) for e in weights.entries(network) if isinstance(e.variable, nnx.Param))
        image = f"{recipe.data.image_size}x{recipe.data.image_size}x{channels}"
        training = recipe.training
        length = f"{training.steps:,} steps" if training.steps else f"{training.epochs} epochs"
        how = f"{length}, batch {training.batch_size}, {training.optimizer} {training.learning_rate:g}"
        rows.append((name, recipe.network.name, recipe.data.dataset, image, f"{parameters:,}", how))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def integers(text: str) -> list[int]:
    """3,7,11 as a list; UserError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"seeds = {text}: expected integers with commas between them, such as 3,7,11.") from None


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value given to --flag, as `--flag value` or `--flag=value`; the last one counts."""
    value = None
    for place, argument in enumerate(arguments):
        if argument == f"--{flag}" and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif argument.startswith(f"--{flag}="):
            value = argument.partition("=")[2]
    return value


def run_command(main: Callable[[], object]) -> None:
    """Call a command's main; what the user got wrong becomes its one or two lines on stderr and exit code 2."""
    keep_compiled()
    keep_freed_memory()
    try:
        main()
    except (UserError, TorchUserError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except Interrupted as end:
        print(end, file=sys.stderr)
        sys.exit(128 + end.number)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
