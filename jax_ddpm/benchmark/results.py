"""What a benchmark found: a case's figures, its table, and a plot of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jax_ddpm.benchmark.contest import Entry
from jax_ddpm.benchmark.job import MATRIX_PRODUCTS, Job

CHAIN = 1000  # sampling steps of an image, by which images per second are counted


@dataclass(frozen=True)
class Row:
    """One contender in one case. Medians over the turns; None where a figure is unknown."""

    contender: str
    seconds: float
    """Per training step, or per step of the sampler."""
    spread: float
    """Largest less smallest turn, as a share of the median."""
    ratio: float
    """Time per step over that of the first contender, turn by turn."""
    images_per_second: float
    compile_seconds: float
    peak_memory: int | None
    """Bytes: resident on a CPU; on a GPU allocated, by JAX ever and by PyTorch in a turn, or reserved for graphs."""
    flops_per_second: float | None
    share: float | None
    """Of what the best matrix product reached."""


def summarise(job: Job, entries: Mapping[str, Entry]) -> dict:
    """A case as JSON can hold it: the job, rows, every turn, and who was left out."""
    timed = {name: entry for name, entry in entries.items() if not entry.left_out}
    products = {name: timed.pop(name) for name in MATRIX_PRODUCTS if name in timed}
    reached = [e.about["flops_per_step"] / np.median(e.seconds) for e in products.values()]
    flops = next((e.about["flops_per_step"] for e in timed.values() if "flops_per_step" in e.about), None)
    first = next(iter(timed.values()), None)
    batch = job.run.training.batch_size
    rows = []
    for name, entry in timed.items():
        seconds = float(np.median(entry.seconds))
        rate = None if flops is None else flops / seconds
        rows.append(
            Row(
                contender=name,
                seconds=seconds,
                spread=float((max(entry.seconds) - min(entry.seconds)) / seconds),
                ratio=float(np.median(np.divide(entry.seconds, first.seconds))),
                images_per_second=batch / seconds / (CHAIN if job.what == "sample" else 1),
                compile_seconds=entry.about["compile_seconds"],
                peak_memory=entry.peak_memory,
                flops_per_second=rate,
                share=None if rate is None or not reached else rate / max(reached),
            )
        )
    return {
        "network": job.run.network.name,
        "arguments": job.run.network.arguments,
        "image_shape": job.image_shape,
        "what": job.what,
        "batch_size": batch,
        "precision": job.run.training.precision,
        "rows": [vars(row) for row in rows],
        "matrix_product_flops_per_second": dict(zip(products, reached, strict=True)),
        "turns": {name: entry.seconds for name, entry in (timed | products).items()},
        "about": {name: entry.about for name, entry in (timed | products).items()},
        "left_out": {name: entry.left_out for name, entry in entries.items() if entry.left_out},
    }


def table(case: Mapping) -> str:
    """A case for people."""
    step = "step" if case["what"] == "train" else "sampling step"
    lines = [("", f"ms per {step}", "spread", "time ratio", "images/s", "compile s", "peak MB", "GFLOP/s", "share")]
    for row in case["rows"]:
        rate, share, memory = row["flops_per_second"], row["share"], row["peak_memory"]
        lines.append(
            (
                row["contender"],
                f"{1e3 * row['seconds']:.4g}",
                f"{row['spread']:.0%}",
                f"{row['ratio']:.2f}",
                f"{row['images_per_second']:.3g}",
                f"{row['compile_seconds']:.1f}",
                "-" if memory is None else f"{memory / 1e6:,.0f}",
                "-" if rate is None else f"{rate / 1e9:,.1f}",
                "-" if share is None else f"{share:.0%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    text += [f"{name}: {rate / 1e9:,.1f} GFLOP/s" for name, rate in case["matrix_product_flops_per_second"].items()]
    text += [
        f"{name}: device at work {about['busy_seconds'] / np.median(case['turns'][name]):.0%} of the time, "
        f"{about['host_copies']:.2g} copies from or to the host per {step}"
        for name, about in case["about"].items()
        if "busy_seconds" in about
    ]
    text += [f"{name}: left out, {reason}" for name, reason in case["left_out"].items()]
    return "\n".join([title(case), *text])


def title(case: Mapping) -> str:
    height, width, channels = case["image_shape"]
    work = "training" if case["what"] == "train" else "sampling"
    return f"{case['network']} {height}x{width}x{channels}, {work}, batch {case['batch_size']}, {case['precision']}"


def plot(cases: Sequence[Mapping]):
    """Images per second of every contender, a panel per case; a matplotlib Figure."""
    from matplotlib.figure import Figure

    columns = min(3, len(cases))
    lines = -(-len(cases) // columns)
    figure = Figure(figsize=(5.5 * columns, 2.8 * lines), layout="constrained")
    for number, case in enumerate(cases, start=1):
        axes = figure.add_subplot(lines, columns, number)
        names = [row["contender"] for row in case["rows"]][::-1]
        speeds = [row["images_per_second"] for row in case["rows"]][::-1]
        axes.barh(names, speeds, color=["tab:orange" if name == "jax" else "tab:blue" for name in names])
        axes.set_title(title(case), fontsize=8)
        axes.set_xlabel("images per second")
    return figure
