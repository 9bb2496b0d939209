"""Curves and histograms as matplotlib figures."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import figure as matplotlib_figure
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter


class Figure(matplotlib_figure.Figure):
    """A matplotlib figure that a notebook shows."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png", dpi=100)
            return file.getvalue()


def loss_curve(rows: Sequence[dict]) -> Figure:
    """Plot training and validation loss by step; the loss axis is logarithmic.

    rows: the rows of metrics.jsonl. Each has `step` and `loss` (None if all its steps were skipped), and after a
    validation also `validation_loss`.
    """
    rows = [row for row in rows if row["loss"] is not None]
    figure, axes = new_axes("step", "loss")
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=0.8, label="training")
    window = max(1, len(losses) // 25)
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"training, mean of {window} rows")
    held_out = [(row["step"], row["validation_loss"]) for row in rows if row.get("validation_loss") is not None]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", markersize=3, label="validation")
    axes.set_yscale("log")
    axes.legend()
    return figure


def loss_by_timestep(t: np.ndarray, losses: np.ndarray, symbol: str = "t") -> Figure:
    """Plot the mean loss by noise level: t and losses, both (K,). The axes of the loss and of sigma are logarithmic."""
    figure, axes = new_axes(symbol, "loss")
    axes.plot(t, losses, color="tab:blue", marker="o", markersize=3)
    axes.set_yscale("log")
    if symbol == "sigma":
        axes.set_xscale("log")
    return figure


def bound_by_timestep(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Plot the terms L_t of the variational bound by timestep, counted from 1; both axes are logarithmic.

    curves: for each name in the legend, `edges` (K + 1,) and `mean_terms` (K,) of a `jax_ddpm.evaluation.Bound`.
    """
    figure, axes = new_axes("t + 1", "bits per dimension")
    for name, (edges, terms) in curves.items():
        axes.stairs(terms, np.asarray(edges) + 1, baseline=None, label=name, linewidth=1.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if len(curves) > 1:
        axes.legend()
    return figure


def score_by_step(
    steps: Sequence[int],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None] = (),
    floor: float | None = None,
    name: str = "FID",
    *,
    floor_interval: tuple[float, float] | None = None,
) -> Figure:
    """Plot a score of checkpoints by step.

    Args:
        steps: of the checkpoints (K,).
        values: their scores (K,).
        intervals: the interval of each score; None or missing ones are left out.
        floor: the score of real images, as a line.
        name: of the score, for the axis.
        floor_interval: the interval of the floor.
    """
    figure, axes = new_axes("step", name)
    axes.plot(steps, values, color="tab:blue", marker="o", markersize=3, label="samples")
    known = [(step, *limits) for step, limits in zip(steps, intervals, strict=False) if limits is not None]
    if known:
        axes.fill_between(*zip(*known, strict=True), color="tab:blue", alpha=0.2, label="95% interval")
    draw_floor(axes, floor, floor_interval, "tab:orange")
    axes.legend()
    return figure


def draw_floor(axes: Axes, floor: float | None, interval: tuple[float, float] | None, color: str) -> None:
    """Draw the score of held-out images as a line, and its interval as a band, into axes; nothing for None."""
    if floor is not None:
        axes.axhline(floor, color=color, linestyle="--", label="held-out images")
    if floor is not None and interval is not None:
        axes.axhspan(*interval, color=color, alpha=0.15, linewidth=0)


class PlainNumbers(LogFormatter):
    """Labels such as 0.6 and 20 in place of 6e-01 and 2 x 10^1."""

    def __call__(self, x, pos=None):
        return f"{x:g}" if super().__call__(x, pos) else ""


def score_by_calls(
    curves: dict[str, list[tuple[float, float, tuple[float, float] | None]]],
    best: Sequence[tuple[float, float]] = (),
    floor: float | None = None,
    name: str = "FID",
    axis: str = "network calls for each image",
    linear: bool = False,
    floor_interval: tuple[float, float] | None = None,
) -> Figure:
    """Plot a score against the number of network calls for each image, or another number; axes are logarithmic.

    Args:
        curves: for each name in the legend, points (calls, score, interval or None).
        best: points (calls, score) to mark.
        floor: the score of real images, as a line.
        name: of the score, for the axis.
        axis: the horizontal axis, if it is not that of network calls.
        linear: whether that axis is linear.
        floor_interval: the interval of the floor.
    """
    figure, axes = new_axes(axis, name)
    for number, (label, points) in enumerate(curves.items()):
        calls, scores, intervals = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        color = f"C{number % 10}"
        axes.plot(calls, scores, color=color, marker="o", markersize=3, label=label)
        known = [(at, *limits) for at, limits in zip(calls, intervals, strict=True) if limits is not None]
        if known:
            at, low, high = zip(*known, strict=True)
            axes.vlines(at, low, high, color=color, linewidth=1, alpha=0.6)
    if best:
        circle = {"markersize": 10, "markerfacecolor": "none", "color": "black"}
        axes.plot(*zip(*best, strict=True), "o", **circle, label="smallest for its calls")
    draw_floor(axes, floor, floor_interval, "tab:gray")
    if not linear:
        axes.set_xscale("log")
    if all(score > 0 for points in curves.values() for _, score, _ in points):
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(PlainNumbers())
            axis.set_minor_formatter(PlainNumbers(minor_thresholds=(2, 0.5)))
    axes.legend()
    return figure


def histogram(edges: np.ndarray, shares: dict[str, np.ndarray]) -> Figure:
    """Plot histograms of pixel values; the vertical axis is logarithmic.

    Args:
        edges: bin edges (K + 1,).
        shares: for each name in the legend, the fraction of the pixel values in each bin (K,).
    """
    figure, axes = new_axes("pixel value", "fraction of pixels")
    for name, values in shares.items():
        axes.stairs(values, edges, label=name, linewidth=1.5)
    axes.set_yscale("log")
    axes.legend()
    return figure


def new_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with empty axes."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3, which="both")
    return figure, axes
