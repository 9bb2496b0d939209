"""How a step's time grows with batch size, image size and width: cases that differ in one of them, side by side."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

AXES = {
    "batch size": lambda case: case["batch_size"],
    "image size": lambda case: case["image_shape"][0],
    "width": lambda case: case["arguments"].get("widths", [None])[0],
}
COLORS = [f"tab:{name}" for name in ("orange", "blue", "green", "red", "purple", "brown", "pink", "gray")]


def curves(cases: Sequence[Mapping]) -> list[dict]:
    """For each contender and what else stays the same: values along an axis (two or more), seconds a step, exponents.

    exponents[i] is that of the i-th interval: seconds grow as value ** exponent from values[i] to values[i + 1].
    """
    found = []
    for axis, place in AXES.items():
        series = defaultdict(dict)
        for case in cases:
            others = str(case["arguments"] | {"widths": len(case["arguments"].get("widths", []))})
            fixed = tuple((name, value_of(case)) for name, value_of in AXES.items() if name != axis)
            for row in case["rows"]:
                key = (case["network"], case["what"], case["precision"], row["contender"], fixed, others)
                series[key][place(case)] = row["seconds"]
        for (network, what, precision, contender, fixed, _), points in series.items():
            if len(points) < 2:
                continue
            values = sorted(points)
            seconds = [points[value] for value in values]
            exponents = np.diff(np.log(seconds)) / np.diff(np.log(values))
            about = {"network": network, "what": what, "precision": precision, "contender": contender}
            about["fixed"] = {name: value for name, value in fixed if value is not None}
            found.append(about | {"axis": axis, "values": values, "seconds": seconds, "exponents": exponents.tolist()})
    return found


def lines(found: Sequence[Mapping]) -> list[str]:
    """The curves for people: `... jax, image size 32: time grows with batch size 8 to 16 to the power 0.90`."""
    return [
        f"{title(c)}, {c['contender']}, {others(c)}: time grows with {c['axis']} "
        f"{' to '.join(map(str, c['values']))} to the power {', '.join(f'{e:.2f}' for e in c['exponents'])}"
        for c in found
    ]


def title(curve: Mapping) -> str:
    return f"{curve['network']}, {'training' if curve['what'] == 'train' else 'sampling'}, {curve['precision']}"


def others(curve: Mapping) -> str:
    """What stays the same along a curve."""
    return ", ".join(f"{name} {value}" for name, value in curve["fixed"].items())


def plot(found: Sequence[Mapping]):
    """Seconds per step along each axis, both logarithmic, a panel per kind of curve; a matplotlib Figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    panels = defaultdict(list)
    for curve in found:
        panels[f"{title(curve)}\n{others(curve)}", curve["axis"]].append(curve)
    colors = dict(zip(dict.fromkeys(curve["contender"] for curve in found), COLORS, strict=False))
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.5 * columns, 3.4 * -(-len(panels) // columns)), layout="constrained")
    for number, ((heading, axis), curves) in enumerate(panels.items()):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, number + 1)
        for curve in curves:
            name = curve["contender"]
            axes.loglog(curve["values"], curve["seconds"], "o-", label=name, color=colors.get(name))
        values = sorted({value for curve in curves for value in curve["values"]})
        axes.set_xticks(values, map(str, values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_title(heading, fontsize=9)
        axes.set_xlabel(axis)
        axes.set_ylabel("seconds per step")
        axes.legend(fontsize=8)
    return figure
