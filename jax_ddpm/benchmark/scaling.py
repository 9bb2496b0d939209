"""Scaling curves: how the time of a step grows with batch size, image size or width."""

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
    """Curves of measurements that differ only on one axis, each with at least two values on that axis.

    A curve holds `values` on its axis, `seconds` per step at each, and `exponents`: between values[i] and
    values[i + 1], the time grows as value ** exponents[i].
    """
    found = []
    for axis, axis_value in AXES.items():
        series = defaultdict(dict)
        for case in cases:
            others = str(case["arguments"] | {"widths": len(case["arguments"].get("widths", []))})
            fixed = tuple((name, value_of(case)) for name, value_of in AXES.items() if name != axis)
            for row in case["rows"]:
                key = (case["network"], case["what"], case["precision"], row["contender"], fixed, others)
                series[key][axis_value(case)] = row["seconds"]
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


def lines(curves: Sequence[Mapping]) -> list[str]:
    """A line per curve: `... jax, image size 32: time grows as batch size^p, batch size 8 to 16: p = 0.90`."""
    return [
        f"{title(c)}, {c['contender']}, {others(c)}: time grows as {c['axis']}^p, {c['axis']} "
        f"{' to '.join(map(str, c['values']))}: p = {', '.join(f'{e:.2f}' for e in c['exponents'])}"
        for c in curves
    ]


def title(curve: Mapping) -> str:
    """For example: conv_block, training, float32."""
    return f"{curve['network']}, {'training' if curve['what'] == 'train' else 'sampling'}, {curve['precision']}"


def others(curve: Mapping) -> str:
    """The settings that are the same along a curve."""
    return ", ".join(f"{name} {value}" for name, value in curve["fixed"].items())


def plot(curves: Sequence[Mapping]):
    """A matplotlib Figure: seconds per step by value, log-log, one panel per axis and set of other settings."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    panels = defaultdict(list)
    for curve in curves:
        panels[f"{title(curve)}\n{others(curve)}", curve["axis"]].append(curve)
    colors = dict(zip(dict.fromkeys(curve["contender"] for curve in curves), COLORS, strict=False))
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.5 * columns, 3.4 * -(-len(panels) // columns)), layout="constrained")
    for number, ((heading, axis), panel) in enumerate(panels.items()):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, number + 1)
        for curve in panel:
            name = curve["contender"]
            axes.loglog(curve["values"], curve["seconds"], "o-", label=name, color=colors.get(name))
        values = sorted({value for curve in panel for value in curve["values"]})
        axes.set_xticks(values, map(str, values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_title(heading, fontsize=9)
        axes.set_xlabel(axis)
        axes.set_ylabel("seconds per step")
        axes.legend(fontsize=8)
    return figure
