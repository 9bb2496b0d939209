"""How a step's time grows with batch size, image size and width: cases that differ in one of them, side by side."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

AXES = {
    "batch size": lambda case: case["batch_size"],
    "image size": lambda case: case["image_shape"][0],
    "width": lambda case: case["arguments"].get("widths", [None])[0],
}


def curves(cases: Sequence[Mapping]) -> list[dict]:
    """For each contender and what else stays the same: values along an axis (two or more), seconds a step, exponents.

    exponents[i] is that of the i-th interval: seconds grow as value ** exponent from values[i] to values[i + 1].
    """
    found = []
    for axis, place in AXES.items():
        series = defaultdict(dict)
        for case in cases:
            others = str(case["arguments"] | {"widths": len(case["arguments"].get("widths", []))})
            same = others, *(value_of(case) for name, value_of in AXES.items() if name != axis)
            for row in case["rows"]:
                key = (case["network"], case["what"], case["precision"], row["contender"], *same)
                series[key][place(case)] = row["seconds"]
        for (network, what, precision, contender, *_), points in series.items():
            if len(points) < 2:
                continue
            values = sorted(points)
            seconds = [points[value] for value in values]
            exponents = np.diff(np.log(seconds)) / np.diff(np.log(values))
            about = {"network": network, "what": what, "precision": precision, "contender": contender}
            found.append(about | {"axis": axis, "values": values, "seconds": seconds, "exponents": exponents.tolist()})
    return found


def lines(found: Sequence[Mapping]) -> list[str]:
    """The curves for people: `... jax: time grows with batch size 8 to 16 to 32 to the power 0.90, 1.00`."""
    return [
        f"{c['network']} {c['what']} {c['precision']} {c['contender']}: time grows with {c['axis']} "
        f"{' to '.join(map(str, c['values']))} to the power {', '.join(f'{e:.2f}' for e in c['exponents'])}"
        for c in found
    ]


def plot(found: Sequence[Mapping]):
    """Seconds per step along each axis, both logarithmic, a panel per network and kind of work; a matplotlib Figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    panels = defaultdict(list)
    for curve in found:
        panels[curve["network"], curve["what"], curve["precision"], curve["axis"]].append(curve)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.3 * lines), layout="constrained")
    for number, ((network, what, precision, axis), curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, number)
        for curve in curves:
            color = "tab:orange" if curve["contender"] == "jax" else None
            axes.loglog(curve["values"], curve["seconds"], "o-", label=curve["contender"], color=color)
        values = sorted({value for curve in curves for value in curve["values"]})
        axes.set_xticks(values, map(str, values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{network}, {'training' if what == 'train' else 'sampling'}, {precision}", fontsize=9)
        axes.set_xlabel(axis)
        axes.set_ylabel("seconds per step")
        axes.legend(fontsize=8)
    return figure
