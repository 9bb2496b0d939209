"""Curves as matplotlib figures."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def loss_curve(rows: Sequence[dict]) -> Figure:
    """Training and validation loss over steps, from the rows of metrics.jsonl."""
    rows = [row for row in rows if row["loss"] is not None]  # null: every step of the row was skipped
    figure, axes = empty("step", "loss")
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


def loss_by_timestep(t: np.ndarray, losses: np.ndarray) -> Figure:
    """Which t are hard: the mean loss at each of some timesteps; both (K,)."""
    figure, axes = empty("t", "loss")
    axes.plot(t, losses, color="tab:blue", marker="o", markersize=3)
    axes.set_yscale("log")
    return figure


def histogram(edges: np.ndarray, shares: dict[str, np.ndarray]) -> Figure:
    """How pixel values are distributed: shares (K,) of the values in the bins between `edges` (K + 1,), by name."""
    figure, axes = empty("pixel value", "share of the pixels")
    for name, values in shares.items():
        axes.stairs(values, edges, label=name, linewidth=1.5)
    axes.set_yscale("log")
    axes.legend()
    return figure


def empty(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3, which="both")
    return figure, axes
