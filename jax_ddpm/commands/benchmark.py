"""`jax-ddpm benchmark`: compare the speed of jax_ddpm with PyTorch."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from jax_ddpm.benchmark import results, scaling
from jax_ddpm.benchmark.contest import measure
from jax_ddpm.benchmark.job import CONTENDERS, Job, Size, What, recipe
from jax_ddpm.commands.flags import parse
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.files import write_text

EXAMPLES = (
    "--network conv_block --what train --contenders jax torch",
    "--network ddpm --preset paper --batch-size 64 128 --precision bfloat16 --out bench",
)


@dataclass(frozen=True)
class CaseFlags:
    """What is measured. Where a flag has several values, each combination is one case."""

    network: tuple[str, ...] = ("conv_block", "strided", "attention", "layer_norm", "ddpm")
    """Networks by name."""
    preset: tuple[Size, ...] = ("tiny",)
    """paper: the full-size network and images of its preset, for an accelerator. tiny: a small network and images."""
    what: tuple[What, ...] = ("train", "sample")
    """train: a training step. sample: a step of the ancestral sampler."""
    batch_size: tuple[int, ...] = (16,)
    """Images per step. Several values give a scaling curve."""
    image_size: tuple[int, ...] = ()
    """Height and width of square images; several values give a scaling curve. Default: as --preset says."""
    width: tuple[int, ...] = ()
    """Channels at the first level of conv_block. Default: as --preset says."""
    precision: tuple[str, ...] = ("float32",)
    """float32 (without TF32), tf32 (products in TF32), or bfloat16 (in PyTorch by autocast)."""
    sampling_steps: int = 20
    """T, the number of sampling steps. The result is the time per step. On an accelerator, use 1000."""

    def check(self) -> None:
        require(self.sampling_steps >= 1, "sampling_steps", self.sampling_steps, "expected at least 1")
        known_values("precision", self.precision, ("float32", "tf32", "bfloat16"))


@dataclass(frozen=True)
class MethodFlags:
    """How it is measured."""

    contenders: tuple[str, ...] = CONTENDERS
    """Programs that are compared; each is compared with the first one."""
    rounds: int = 5
    """Number of timed rounds. Each contender runs once per round."""

    def check(self) -> None:
        require(self.rounds >= 1, "rounds", self.rounds, "expected at least 1")
        known_values("contenders", self.contenders, CONTENDERS)


@dataclass(frozen=True)
class OutputFlags:
    out: Path = Path("benchmark")
    """Folder for results.json, results.png and, if there are scaling curves, scaling.png."""


@dataclass(frozen=True)
class BenchmarkFlags:
    """Compare the speed of jax_ddpm with PyTorch, in training and in sampling.

    Each contender has a process of its own. They take turns (A B A B ...), and only one computes at a time. A
    contender's time counts only if its output for fixed weights and inputs equals that of jax_ddpm.
    """

    cases: CaseFlags = CaseFlags()
    method: MethodFlags = MethodFlags()
    output: OutputFlags = OutputFlags()


def known_values(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    """UserError for a value that is not known."""
    for value in values:
        require(value in known, name, value, f"expected one of {', '.join(known)}")


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(BenchmarkFlags, arguments, prog, EXAMPLES)
    cases, method, out = flags.cases, flags.method, flags.output.out
    cases.check()
    method.check()
    jobs = [
        job(cases, network, size, batch_size, image_size, width, precision, what)
        for network in cases.network
        for size in cases.preset
        for batch_size in cases.batch_size
        for image_size in cases.image_size or (None,)
        for width in cases.width or (None,)
        for precision in cases.precision
        for what in cases.what
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}).") from None
    measured = []
    for one in jobs:
        case = results.summarise(one, measure(one, method.contenders, method.rounds, print))
        measured.append(case)
        print(results.table(case), end="\n\n", flush=True)
        found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "cases": measured}
        found["scaling"] = scaling.curves(measured)
        write_text(out / "results.json", json.dumps(found, indent=2))
        results.plot(measured).savefig(out / "results.png", dpi=120)
    saved = [out / "results.json", out / "results.png"]
    if found["scaling"]:
        print(*scaling.lines(found["scaling"]), sep="\n")
        saved.append(out / "scaling.png")
        scaling.plot(found["scaling"]).savefig(saved[-1], dpi=120)
    print(f"Saved {', '.join(map(str, saved))}")
    if not any(case["rows"] for case in measured):
        raise UserError("No contender could be measured. The reasons are printed above.")


def job(cases: CaseFlags, network, size: Size, batch_size, image_size, width, precision, what: What) -> Job:
    run = recipe(network, size)
    if image_size is not None:
        run = replace(run, data=replace(run.data, image_size=image_size))
    if width is not None:
        require(network == "conv_block", "width", width, "only conv_block has a width (--network conv_block)")
        widths = tuple(width * 2**level for level in range(len(run.network.widths)))
        run = replace(run, network=replace(run.network, widths=widths))
    training = replace(run.training, batch_size=batch_size, precision=precision)
    diffusion = replace(run.diffusion, timesteps=cases.sampling_steps) if what == "sample" else run.diffusion
    run = replace(run, training=training, diffusion=diffusion)
    run.check()
    return Job("", what, run, image_channels=3 if run.data.dataset == "cifar10" else 1)


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
