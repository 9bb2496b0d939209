"""`jax-ddpm benchmark`: measure jax_ddpm beside PyTorch."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from jax_ddpm.benchmark import results, scaling
from jax_ddpm.benchmark.contest import contest
from jax_ddpm.benchmark.job import CONTENDERS, Job, Size, What, recipe
from jax_ddpm.commands.flags import parse
from jax_ddpm.spec.errors import UserError, require


@dataclass(frozen=True)
class BenchmarkFlags:
    """Train and sample with every contender in turns, A B A B, each in a process of its own, one at work at a time.

    A contender's time counts only if its output for fixed weights and input is jax_ddpm's.
    """

    network: tuple[str, ...] = ("conv_block", "strided", "attention", "layer_norm", "ddpm")
    preset: tuple[Size, ...] = ("tiny",)
    """paper: the network of its preset, a job for an accelerator; tiny: a small one."""
    batch_size: tuple[int, ...] = (16,)
    image_size: tuple[int, ...] = ()
    """Height and width of the images; those of the recipe if none. Several give a scaling curve, as do batch sizes."""
    width: tuple[int, ...] = ()
    """conv_block's channels at its first level, as many levels as the recipe has; the recipe's if none."""
    precision: tuple[str, ...] = ("float32",)
    """float32 (no TF32), bfloat16 (in PyTorch by autocast)."""
    what: tuple[What, ...] = ("train", "sample")
    contenders: tuple[str, ...] = CONTENDERS
    """The first is what the others are compared with."""
    rounds: int = 5
    """Turns of each contender."""
    sampling_steps: int = 20
    """Length of the diffusion that is sampled; its time per step counts. 1000 on an accelerator."""
    out: Path = Path("benchmark")
    """Folder for results.json, results.png, and scaling.png if there are curves."""

    def check(self) -> None:
        require(self.rounds >= 1, "rounds", self.rounds, "expected at least 1")
        require(self.sampling_steps >= 1, "sampling_steps", self.sampling_steps, "expected at least 1")
        for name, known in (("contenders", CONTENDERS), ("precision", ("float32", "bfloat16"))):
            for value in getattr(self, name):
                require(value in known, name, value, f"expected one of {', '.join(known)}")


def main(arguments: Sequence[str], prog: str) -> None:
    flags = parse(BenchmarkFlags, arguments, prog)
    flags.check()
    jobs = [
        job(flags, network, size, batch_size, image_size, width, precision, what)
        for network in flags.network
        for size in flags.preset
        for batch_size in flags.batch_size
        for image_size in flags.image_size or (None,)
        for width in flags.width or (None,)
        for precision in flags.precision
        for what in flags.what
    ]
    try:
        flags.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flags.out} cannot be made ({error.strerror}).") from None
    cases = []
    for one in jobs:
        case = results.summarise(one, contest(one, flags.contenders, flags.rounds, print))
        cases.append(case)
        print(results.table(case), end="\n\n", flush=True)
        found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "cases": cases}
        found["scaling"] = scaling.curves(cases)
        (flags.out / "results.json").write_text(json.dumps(found, indent=2))
        results.plot(cases).savefig(flags.out / "results.png", dpi=120)
    saved = [flags.out / "results.json", flags.out / "results.png"]
    if found["scaling"]:
        print(*scaling.lines(found["scaling"]), sep="\n")
        saved.append(flags.out / "scaling.png")
        scaling.plot(found["scaling"]).savefig(saved[-1], dpi=120)
    print(f"Saved {', '.join(map(str, saved))}")
    if not any(case["rows"] for case in cases):
        raise UserError("No contender could take part: see above why.")


def job(flags: BenchmarkFlags, network, size: Size, batch_size, image_size, width, precision, what: What) -> Job:
    run = recipe(network, size)
    if image_size is not None:
        run = replace(run, data=replace(run.data, image_size=image_size))
    if width is not None:
        require(network == "conv_block", "width", width, "expected none for any network but conv_block")
        widths = tuple(width * 2**level for level in range(len(run.network.widths)))
        run = replace(run, network=replace(run.network, widths=widths))
    training = replace(run.training, batch_size=batch_size, precision=precision)
    diffusion = replace(run.diffusion, timesteps=flags.sampling_steps) if what == "sample" else run.diffusion
    run = replace(run, training=training, diffusion=diffusion)
    run.check()
    return Job("", what, run, image_channels=3 if run.data.dataset == "cifar10" else 1)


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
