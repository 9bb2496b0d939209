"""`jax-ddpm train --sweep`: one run for each combination of values, one after another, compared on a page."""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jax_ddpm.commands import compare
from jax_ddpm.commands.own_code import values_of
from jax_ddpm.commands.train import RunFlags, is_long_on_cpu, parse_run
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import write_text
from jax_ddpm.spec.flat_settings import check_names, parts_by_field
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training import run_folder
from jax_ddpm.training.trackers import check_trackers

SWEEP_FILE = "sweep.json"
"""In the folder of a sweep: by the name of a run's folder, the settings with which it was finished."""
PAGE = "compare.html"
BOOLEANS = {"true": True, "false": False}
NOT_SWEPT = ("resume", "replay-step", "list-presets")
Train = Callable[[RunConfig, Path, bool], Path]


@dataclass(frozen=True)
class SweptRun:
    """One combination of values."""

    folder: Path
    config: RunConfig
    started: bool
    """Whether its folder holds a run, which is resumed."""


def sweep(arguments: Sequence[str], prog: str, train: Train | None = None) -> None:
    """Train each combination that is not finished yet, and compare all of them.

    A run that fails, such as one whose loss is not finite, does not stop the others.

    Args:
        train: what trains a run; `jax_ddpm.train` if None.

    Raises:
        UserError: before the first run, for a wrong name or value; at the end, if runs failed.
    """
    out, runs = plan_sweep(arguments, prog)
    if train is None:
        from jax_ddpm.training.loop import train  # imported here so that flag errors appear at once

        if is_long_on_cpu(runs[0].config):
            print("Full-size networks are a job for a GPU or a TPU, and JAX finds only a CPU.")
    import jax

    x64, failures = jax.config.jax_enable_x64, {}
    for number, run in enumerate(runs, 1):
        title = f"Run {number} of {len(runs)}: {run.folder}"
        if run.started and finished_in(out).get(run.folder.name) == as_json(run.config):
            print(f"{title} is finished.")
            continue
        print(f"\n{title}")
        try:
            train(run.config, run.folder, run.started)
        except KeyboardInterrupt:
            print("To go on with the whole sweep, give its command again.")
            raise
        except UserError as error:
            failures[run.folder.name] = str(error)
            print(f"{run.folder.name} failed: {error}")
            continue
        finally:
            jax.config.update("jax_enable_x64", x64)  # a run in float64 switches it on
        write_text(out / SWEEP_FILE, json.dumps(finished_in(out) | {run.folder.name: as_json(run.config)}) + "\n")
    done = [str(run.folder) for run in runs if run.folder.name not in failures]
    if len(done) > 1:
        compare.main([*done, "--out", str(out / PAGE)], "jax-ddpm compare")
    if failures:
        first = next(iter(failures))
        raise UserError(f"{len(failures)} of {len(runs)} runs failed. {first}: {' '.join(failures[first].split())}")


def plan_sweep(arguments: Sequence[str], prog: str) -> tuple[Path, list[SweptRun]]:
    """The folder of a sweep, and its runs with their settings. Writes nothing.

    Raises UserError for a wrong name or value, or if a folder holds another run.
    """
    rest, words = split(arguments)
    for flag in NOT_SWEPT:
        if f"--{flag}" in rest or values_of(flag, rest):
            raise UserError(f"--sweep goes on by itself: give its command again, without --{flag}.")
    if "--distributed" in rest:
        raise UserError("--sweep trains in one process: leave out --distributed.")
    values = read_values(words)
    flags = parse_run(rest, prog)  # ends the process at --help and at flags that do not parse
    check_names(set(values) - {"preset"}, parts_by_field(flags.config))
    default = run_folder.default_out(flags.config)
    out = flags.out or default.with_name(f"{default.name}-sweep")
    runs = []
    for combination in itertools.product(*([(name, value) for value in values[name]] for name in values)):
        swept = [word for name, value in combination for word in as_flags(name, value, flags)]
        config = parse_run([*rest, *swept], prog).config
        folder = out / folder_name(combination)
        started = (folder / run_folder.CONFIG_FILE).exists()
        run_folder.check_folder(folder, config, started)
        check_trackers(config.output)
        runs.append(SweptRun(folder, config, started))
    if len({run.folder for run in runs}) < len(runs):
        raise UserError(f"sweep = {' '.join(words)}: expected different values, whose names as folders differ, too.")
    return out, runs


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without --sweep, and the words that follow it."""
    rest, words, inside = [], [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag == "--sweep":
            inside = True
            words += [value] if equals else []
        elif inside and not argument.startswith("-"):
            words.append(argument)
        else:
            inside = False
            rest.append(argument)
    return rest, words


def read_values(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each name. A value of several numbers has spaces: "widths=32 64,64 128"."""
    values = {}
    for word in words:
        name, equals, listed = word.partition("=")
        name, each = name.replace("-", "_"), [value.strip() for value in listed.split(",")]
        if not (name and equals and all(each)):
            raise UserError(f"sweep = {word}: expected NAME=VALUE,VALUE,... such as seed=0,1,2.")
        if name in values:
            raise UserError(f"sweep = {word}: {name} is given twice. Give all its values at once: {name}=VALUE,VALUE.")
        values[name] = each
    if not values:
        raise UserError("sweep has no settings: expected NAME=VALUE,VALUE,... such as seed=0,1,2.")
    return values


def as_flags(name: str, value: str, flags: RunFlags) -> list[str]:
    """A setting and its value as on the command line."""
    flag = name.replace("_", "-")
    part = parts_by_field(flags.config).get(name)
    is_switch = part is not None and isinstance(getattr(getattr(flags.config, part), name), bool)
    if not is_switch:
        return [f"--{flag}", *value.split()]
    if value.lower() not in BOOLEANS:
        raise UserError(f"{name} = {value}: expected true or false.")
    return [f"--{flag}" if BOOLEANS[value.lower()] else f"--no-{flag}"]


def folder_name(combination: Sequence[tuple[str, str]]) -> str:
    """Such as seed-0_learning_rate-1e-4."""
    return "_".join(f"{name}-{re.sub(r'[^A-Za-z0-9.-]+', '-', value).strip('-')}" for name, value in combination)


def finished_in(out: Path) -> dict[str, dict]:
    """The content of sweep.json."""
    path = out / SWEEP_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is damaged. Delete it: then all runs of the sweep are checked again.") from None


def as_json(config: RunConfig) -> dict:
    """The settings as sweep.json has them."""
    return json.loads(json.dumps(asdict(config)))
