"""The numbers of each case of a benchmark, as JSON, as a table and as a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jax_ddpm.benchmark.contest import Result
from jax_ddpm.benchmark.job import MATRIX_PRODUCTS, Job

STEPS_PER_IMAGE = 1000  # sampling steps per image, for images per second


@dataclass(frozen=True)
class Row:
    """One contender in one case: medians over the turns. None: not known."""

    contender: str
    seconds: float
    """Per training step, or per step of the sampler."""
    spread: float
    """(slowest turn - fastest turn) / median."""
    ratio: float
    """Time per step divided by that of the first contender in the same round."""
    images_per_second: float
    compile_seconds: float
    peak_memory: int | None
    """Peak bytes. On a CPU: the resident set.

    On a GPU: the bytes that JAX allocated since its start, or that PyTorch allocated (with CUDA graphs: reserved) in
    the last turn.
    """
    flops_per_second: float | None
    share: float | None
    """`flops_per_second` divided by that of the fastest matrix product."""


def summarise(job: Job, results: Mapping[str, Result]) -> dict:
    """A case as a dict for JSON: the job, a `Row` per contender, the time of every turn, and who was left out."""
    timed = {name: result for name, result in results.items() if not result.left_out}
    products = {name: timed.pop(name) for name in MATRIX_PRODUCTS if name in timed}
    product_rates = [r.about["flops_per_step"] / np.median(r.seconds) for r in products.values()]
    flops = next((r.about["flops_per_step"] for r in timed.values() if "flops_per_step" in r.about), None)
    first = next(iter(timed.values()), None)
    batch = job.run.training.batch_size
    rows = []
    for name, result in timed.items():
        seconds = float(np.median(result.seconds))
        rate = None if flops is None else flops / seconds
        rows.append(
            Row(
                contender=name,
                seconds=seconds,
                spread=float((max(result.seconds) - min(result.seconds)) / seconds),
                ratio=float(np.median(np.divide(result.seconds, first.seconds))),
                images_per_second=batch / seconds / (STEPS_PER_IMAGE if job.what == "sample" else 1),
                compile_seconds=result.about["compile_seconds"],
                peak_memory=result.peak_memory,
                flops_per_second=rate,
                share=None if rate is None or not product_rates else rate / max(product_rates),
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
        "matrix_product_flops_per_second": dict(zip(products, product_rates, strict=True)),
        "turns": {name: result.seconds for name, result in (timed | products).items()},
        "about": {name: result.about for name, result in (timed | products).items()},
        "left_out": {name: result.left_out for name, result in results.items() if result.left_out},
    }


def table(case: Mapping) -> str:
    """A case as text: a table with a row per contender, and lines for what is not in it."""
    step = "step" if case["what"] == "train" else "sampling step"
    lines = [("", f"ms per {step}", "spread", "time ratio", "images/s", "compile s", "peak MB", "GFLOP/s", "of matmul")]
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
        f"{name}: device busy {about['busy_seconds'] / np.median(case['turns'][name]):.0%} of the time, "
        f"{about['host_copies']:.2g} copies from or to the host per {step}"
        for name, about in case["about"].items()
        if "busy_seconds" in about
    ]
    text += [f"{name}: left out, {reason}" for name, reason in case["left_out"].items()]
    return "\n".join([title(case), *text])


def title(case: Mapping) -> str:
    """For example: conv_block 32x32x1, training, batch 64, float32."""
    height, width, channels = case["image_shape"]
    work = "training" if case["what"] == "train" else "sampling"
    return f"{case['network']} {height}x{width}x{channels}, {work}, batch {case['batch_size']}, {case['precision']}"


def plot(cases: Sequence[Mapping]):
    """A matplotlib Figure with the images per second of every contender, one panel per case."""
    from matplotlib.figure import Figure

    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(5.5 * columns, 2.8 * rows), layout="constrained")
    for number, case in enumerate(cases, start=1):
        axes = figure.add_subplot(rows, columns, number)
        names = [row["contender"] for row in case["rows"]][::-1]
        speeds = [row["images_per_second"] for row in case["rows"]][::-1]
        axes.barh(names, speeds, color=["tab:orange" if name == "jax" else "tab:blue" for name in names])
        axes.set_title(title(case), fontsize=8)
        axes.set_xlabel("images per second")
    return figure
