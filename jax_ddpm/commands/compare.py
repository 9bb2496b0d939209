"""`jax-ddpm compare`: several runs side by side, as a table and as a page."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from jax_ddpm.commands.flags import ImportFlag, SamplerFlags, parse
from jax_ddpm.spec.diffusion_config import CONTINUOUS_STEPS, SamplerConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.files import write_text

EXAMPLES = (
    "runs/digits-digits runs/digits-cosine",
    "runs/a runs/b runs/c --sampler ddim --num-steps 50 --out abc.html",
)


@dataclass(frozen=True)
class CompareFlags:
    """Compare runs: settings that differ, losses, scores, speed, and pictures of the same seeds."""

    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="")
    ]
    """Folders of two runs or more."""
    out: Path = Path("compare.html")
    """Page to write, one HTML file that loads nothing else."""
    num_images: int = 16
    """Pictures of each run. 0: none."""
    seed: int = 0
    """Seed of the noise, the same for all runs."""
    batch_size: int = 64
    """Pictures drawn at a time."""
    imports: ImportFlag = ()
    sampling: SamplerFlags = field(default_factory=SamplerFlags)


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(CompareFlags, arguments, prog, EXAMPLES)
    require(flags.num_images >= 0, "num_images", flags.num_images, "expected 0 or more")
    require(flags.batch_size >= 1, "batch_size", flags.batch_size, "expected at least 1")
    from jax_ddpm.training import compare  # imported here so that --help and flag errors appear at once

    runs = compare.open_runs(flags.runs)
    samplers = {}
    for run in runs:
        if run.model and flags.num_images:
            samplers[run.name] = flags.sampling.fitting(run.model.info.diffusion, lambda line: None)
    notes = compare.notes_on(runs)
    for title, rows in (("", compare.figures_table(runs)), ("Settings that differ", compare.settings_table(runs))):
        print(f"\n{text_table([title, *(run.name for run in runs)], rows)}")
    drawn = {}
    if flags.num_images:
        drawn, left_out = draw(flags, runs, samplers)
        notes += left_out
    print("", compare.ABOUT_FIGURES, *notes, sep="\n")
    about = about_samplers(runs, samplers, flags.seed)
    page = compare.comparison_page(runs, drawn, notes, about, command_of(flags))
    try:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(flags.out, page)
    except OSError as error:
        raise UserError(f"{flags.out} cannot be written ({error.strerror}).") from None
    print(f"Wrote {flags.out}, {flags.out.stat().st_size / 1000:,.0f} kB")


def draw(flags: CompareFlags, runs, samplers: dict[str, SamplerConfig]) -> tuple[dict, list[str]]:
    """`compare.draw_same_seeds`, with a progress bar."""
    from jax_ddpm.training import compare

    done_of = {}
    with tqdm(total=flags.num_images * sum(run.model is not None for run in runs), unit="image", delay=0.5) as bar:

        def progress(name: str, done: int) -> None:
            done_of[name] = done
            bar.set_description(f"drawing {name}", refresh=False)
            bar.update(sum(done_of.values()) - bar.n)

        return compare.draw_same_seeds(
            runs, flags.num_images, samplers, flags.seed, flags.batch_size, progress=progress
        )


def about_samplers(runs, samplers: dict[str, SamplerConfig], seed: int) -> str:
    """How the pictures are drawn: a sentence, or one for the runs of each sampler if they have several."""
    names: dict[str, list[str]] = {}
    for run in runs:
        if run.name in samplers:
            diffusion, sampler = run.model.info.diffusion, samplers[run.name]
            steps = sampler.num_steps or (CONTINUOUS_STEPS if diffusion.is_continuous else "all")
            names.setdefault(f"the sampler {sampler.sampler} in {steps} steps, seed {seed}", []).append(run.name)
    if len(names) == 1:
        return f"Drawn with {next(iter(names))}."
    return " ".join(f"{', '.join(of_sampler)}: drawn with {how}." for how, of_sampler in names.items())


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text under their names."""
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def command_of(flags: CompareFlags) -> str:
    """The command line that makes the page again."""
    values = {name: getattr(flags, name) for name in ("out", "num_images", "seed", "batch_size")}
    values |= asdict(flags.sampling)
    defaults = {name: getattr(CompareFlags, name) for name in ("num_images", "seed", "batch_size")}
    defaults |= asdict(SamplerFlags())
    changed = {name: value for name, value in values.items() if value != defaults.get(name, object())}
    words = [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    imports = [word for name in flags.imports for word in ("--import", name)]
    return shlex.join(["jax-ddpm", "compare", *map(str, flags.runs), *imports, *words])
