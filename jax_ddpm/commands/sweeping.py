"""`jax-ddpm evaluate --sweep`: scores of many samplers, a table and a figure."""

import json
from dataclasses import asdict
from functools import lru_cache

import numpy as np

from jax_ddpm import load_model, report
from jax_ddpm.commands.evaluating import Evaluation, picture_path
from jax_ddpm.evaluation.sweep import (
    EMA_WIDTH,
    Combination,
    Point,
    best_points,
    score_points,
    table,
    warnings,
    with_settings,
)
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path, write_text

LEVEL_IMAGES = 1000  # of which the mean level is computed


def sweep(evaluation: Evaluation) -> None:
    """Score every combination, print the table, and write the figure and the files that the flags ask for."""
    flags, chosen = evaluation.flags, evaluation.chosen
    settings_of_model = {**flags.loading.arguments, **asdict(flags.diffusion)}

    @lru_cache(maxsize=1)
    def model_of(ema_width: float | None):
        if ema_width is None:
            return evaluation.model
        return load_model(
            flags.subject, flags.image_size, flags.precision, **{**settings_of_model, "ema_width": ema_width}
        )

    def draw(combination: Combination):
        return evaluation.draw(with_settings(model_of(combination.ema_width), combination), combination.sampler)

    points: list[Point] = []
    settings = {"batch_size": flags.batch_size, "progress": evaluation.bars}
    for point in score_points(chosen, draw, evaluation.reference, **settings):
        evaluation.bars.close()
        points.append(point)
        print(f"{len(points)} of {len(chosen)}: {point.combination}, FID {point.scores.value_text('fid')}")
        drawn_by = point.combination.sampler, point.combination.diffusion
        results = point.scores.as_dict(), point.seconds or 0.0
        added = evaluation.add_result(*drawn_by, *results, point.combination.ema_width)
    print(f"\nScores of {points[0].scores.num_images:,} images each:\n{table(points)}")
    print("* no other one has a smaller FID with as many network calls for each image or fewer.")
    print("Overlapping intervals: the difference may be chance.\n")
    real = evaluation.real.images
    real_level = None if real is None else float(np.mean(real[:LEVEL_IMAGES]))
    for line in [*warnings(points, real_level), *points[0].scores.lines()]:
        print(line)
    if floor := points[0].scores.floor:
        print(f"FID of real images: {floor.value_text('fid')}")
    try:
        path = picture_path(evaluation, "sweep.png")
        with atomic_path(path) as draft:
            figure(points).savefig(draft, dpi=120, format="png")
        print(f"Wrote the figure: {path}")
        if flags.out is not None:
            write_text(flags.out, json.dumps([point.as_dict() for point in points], indent=2) + "\n")
            print(f"Wrote the scores: {flags.out}")
    except OSError as error:
        raise UserError(f"{error.filename or flags.out} cannot be written ({error.strerror}).") from None
    if added is not None:
        print(f"Added to {added}")


def figure(points: list[Point]):
    """The distances by network calls; by weights of guidance or widths of the average, if these are swept.

    There is a curve for each combination of the other settings. The usual weights have no width and are left out.
    """
    swept, axis = "num_steps", "network calls for each image"
    if len({point.combination.sampler.guidance for point in points}) > 1:
        swept, axis = "guidance", "weight of guidance"
    elif any(point.combination.ema_width is not None for point in points):
        swept, axis = EMA_WIDTH, "width of the average"
        points = [point for point in points if point.combination.ema_width is not None]

    def position(point: Point) -> float:
        combination = point.combination
        others = {"guidance": combination.sampler.guidance, EMA_WIDTH: combination.ema_width}
        return others.get(swept, combination.network_calls)

    has_fid = points[0].scores.fid is not None
    curves: dict[str, list] = {}
    for point in points:
        if point.distance is None:
            continue
        others = [f"{name}={value}" for name, value in point.combination.given.items() if name != swept]
        interval = point.scores.fid_interval if has_fid else None
        curve = curves.setdefault(" ".join(others) or point.combination.sampler.sampler, [])
        curve.append((position(point), point.distance, interval))
    is_guidance = swept == "guidance"
    best = [] if is_guidance else [(position(point), point.distance) for point in best_points(points)]
    floor = points[0].scores.floor
    floor_value = None if floor is None else floor.fid if has_fid else floor.kid
    floor_interval = floor.fid_interval if floor and has_fid else None
    name = "FID" if has_fid else "KID"
    return report.score_by_calls(
        curves, best, floor_value, name, axis, linear=is_guidance, floor_interval=floor_interval
    )
