"""The curves on the page of a run, from its metrics and from the numbers of its final pictures."""

import math

import numpy as np

from jax_ddpm.report import html_page

FLOOR = "_floor"  # ends the names of the scores of held-out images in metrics.jsonl


def training_charts(rows: list[dict]) -> list[dict]:
    """Curves over the steps: losses, images per second, gradient norm, learning rate."""
    if not rows:
        return []

    def column(name):
        return [math.nan if row.get(name) is None else row[name] for row in rows]

    steps = [row["step"] for row in rows]
    loss = [html_page.curve("training", steps, column("loss"), style="faint", log=True)]
    window, about_mean = max(1, len(rows) // 25), ""
    if window > 1:
        smooth = np.convolve(column("loss"), np.ones(window) / window, mode="valid")
        loss.append(html_page.curve(f"mean of {window} rows", steps[window - 1 :], smooth, log=True))
        about_mean = f" Mean of {window} rows: of the training loss, over the last {window} rows of metrics.jsonl."
    held_out = [(row["step"], row["validation_loss"]) for row in rows if row.get("validation_loss") is not None]
    if held_out:
        loss.append(
            html_page.curve("validation", *zip(*held_out, strict=True), colour="second", style="points", log=True)
        )
    text = "Training loss: with the current weights. Validation loss: with the weights for sampling (the EMA, if on)."
    text += about_mean
    charts = [chart("Loss", text, loss), *evaluation_charts(rows)]
    for name, title, text, log in (
        ("images_per_second", "Images per second", "Without the time for validation, pictures and checkpoints.", False),
        ("grad_norm", "Gradient norm", "Before clipping, if the run clips gradients.", True),
        ("learning_rate", "Learning rate", "At each row of metrics.jsonl.", False),
    ):
        charts.append(chart(title, text, [html_page.curve(title.lower(), steps, column(name), log=log)], log=log))
    return [c for c in charts if any(np.isfinite(line["y"]).any() for line in c["series"])]


def evaluation_charts(rows: list[dict]) -> list[dict]:
    """Curves of the scores that --evaluate-every left in the rows: FID, KID, precision and recall, by features."""

    def line(name: str, label: str, colour: str, style: str = "points", log: bool = False) -> list[dict]:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        return [html_page.curve(label, *zip(*points, strict=True), colour, style, log)] if points else []

    charts = []
    for features in evaluated_features(rows):
        for score, log in (("fid", True), ("kid", False)):
            lines = line(f"{score}_{features}", "samples", "first", log=log)
            floor = line(f"{score}_{features}{FLOOR}", "held-out images", "second", "line", log)
            text = f"Distance of samples to the training images, by the features {features}. Smaller is better."
            text += " The second line is the floor: held-out images in place of the samples." if floor else ""
            charts.append(chart(f"{score.upper()} ({features})", text, [*lines, *floor], y=score.upper(), log=log))
        lines = [*line(f"precision_{features}", "precision", "first"), *line(f"recall_{features}", "recall", "second")]
        text = (
            "Precision: share of the samples near training images. Recall: share of the training images near samples."
        )
        charts.append(chart(f"Precision and recall ({features})", text, lines, y="share", log=False))
    return [each for each in charts if each["series"]]


def evaluated_features(rows: list[dict]) -> list[str]:
    """The names of the features by which samples were scored during the training: NAME of fid_NAME."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("fid_") and not name.endswith(FLOOR))
    return [name.removeprefix("fid_") for name in names]


def final_charts(numbers: dict) -> list[dict]:
    """Curves of the final pictures: loss by timestep, histogram of the pixel values."""
    charts = []
    if "loss_by_t" in numbers:
        split = "held-out" if numbers["num_held_out"] else "training"
        symbol, levels = str(numbers.get("level_symbol", "t")), numbers["loss_t"]  # earlier versions have timesteps
        x, x_name = (np.log10(levels), "log10 sigma") if symbol == "sigma" else (levels, symbol)
        line = html_page.curve("loss", x, numbers["loss_by_t"], style="points", log=True)
        text = f"Mean squared error on {split} images, with the same noise at every {symbol}."
        title = "Loss by timestep" if levels.dtype.kind == "i" else "Loss by noise level"
        charts.append(chart(title, text, [line], x=x_name))
    sampled = numbers["sampled_shares"]
    fractions = {"samples": sampled, "data": numbers.get("data_shares", 0 * sampled)}
    used = np.flatnonzero(sum(fractions.values()))
    bins = slice(used[0], used[-1] + 1)
    bin_centres = np.round((numbers["bins"][1:] + numbers["bins"][:-1]) / 2, 3)[bins]
    lines = [
        html_page.curve(name, bin_centres, 100 * fraction[bins], colour, "points", log=True)
        for (name, fraction), colour in zip(fractions.items(), ("first", "second"), strict=True)
        if fraction.any()
    ]
    text = f"Share of the pixels in each of {len(bin_centres)} bins. Images are scaled to [-1, 1]."
    charts.append(chart("Pixel values", text, lines, x="value", y="percent of pixels", unit=" %"))
    return charts


def chart(title, text, series, x="step", y=None, log=True, unit="") -> dict:
    """A chart in the format that page.html reads. log: logarithmic y axis. unit: the text after each y value."""
    return {"title": title, "text": text, "series": series, "x": x, "y": y or title, "log": log, "unit": unit}
