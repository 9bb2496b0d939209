"""The curves on the page of a run, from its metrics and from the numbers of its closing pictures."""

import math

import numpy as np

from jax_ddpm.report import html_page


def training_charts(rows: list[dict]) -> list[dict]:
    """Over the steps: losses, images per second, gradient norm, learning rate."""
    if not rows:
        return []

    def column(name):
        return [math.nan if row.get(name) is None else row[name] for row in rows]

    steps = [row["step"] for row in rows]
    loss = [html_page.curve("training", steps, column("loss"), style="faint", log=True)]
    window = max(1, len(rows) // 25)
    if window > 1:
        smooth = np.convolve(column("loss"), np.ones(window) / window, mode="valid")
        loss.append(html_page.curve(f"mean of {window} rows", steps[window - 1 :], smooth, log=True))
    held_out = [(row["step"], row["validation_loss"]) for row in rows if row.get("validation_loss") is not None]
    if held_out:
        loss.append(
            html_page.curve("validation", *zip(*held_out, strict=True), colour="second", style="points", log=True)
        )
    charts = [
        chart("Loss", "On training images with the weights as they are, on held-out ones with those sampled.", loss)
    ]
    for name, title, text, log in (
        ("images_per_second", "Images per second", "While training; pauses for pictures do not count.", False),
        ("grad_norm", "Gradient norm", "Before clipping, where the run clips.", True),
        ("learning_rate", "Learning rate", "Warm-up and decay.", False),
    ):
        charts.append(chart(title, text, [html_page.curve(title.lower(), steps, column(name), log=log)], log=log))
    return [shown for shown in charts if any(np.isfinite(line["y"]).any() for line in shown["series"])]


def closing_charts(closing: dict) -> list[dict]:
    """Loss by t, and the distribution of the pixel values."""
    charts = []
    if "loss_by_t" in closing:
        whose = "held-out" if closing["num_held_out"] else "training"
        line = html_page.curve("loss", closing["loss_t"], closing["loss_by_t"], style="points", log=True)
        text = f"Which t are hard: mean squared error on {whose} images, the same noise at every t."
        charts.append(chart("Loss by timestep", text, [line], x="t"))
    shares = {"samples": closing["sampled_shares"], "data": closing.get("data_shares", 0 * closing["sampled_shares"])}
    used = np.flatnonzero(sum(shares.values()))
    bins = slice(used[0], used[-1] + 1)
    middles = ((closing["bins"][1:] + closing["bins"][:-1]) / 2)[bins]
    lines = [
        html_page.curve(name, middles, 100 * share[bins], colour, "points", log=True)
        for (name, share), colour in zip(shares.items(), ("first", "second"), strict=True)
        if share.any()
    ]
    text = "How often a pixel has which value: images are scaled to [-1, 1]."
    charts.append(chart("Pixel values", text, lines, x="value", y="percent of pixels", unit=" %"))
    return charts


def chart(title, text, series, x="step", y=None, log=True, unit="") -> dict:
    return {"title": title, "text": text, "series": series, "x": x, "y": y or title, "log": log, "unit": unit}
