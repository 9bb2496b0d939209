"""Which sampler for which number of network calls: the product of some settings, each combination scored."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import Any, get_args

import numpy as np

from jax_ddpm.evaluation.image_sets import ImageSet
from jax_ddpm.evaluation.reference import Reference
from jax_ddpm.evaluation.scores import Scores, score
from jax_ddpm.sampling.reverse import sampling_timesteps
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, check_sampler
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.model_files import SAMPLING_SETTINGS
from jax_ddpm.weights.model import Model

SAMPLER_SETTINGS = tuple(field.name for field in fields(SamplerConfig) if field.name != "guidance_interval")
EMA_WIDTH = "ema_width"
SETTINGS = (*SAMPLER_SETTINGS, *SAMPLING_SETTINGS, EMA_WIDTH)
FAR_WORSE = 1.25  # times the FID of the ancestral sampler, and intervals that do not overlap
LEVELS = 5  # by which the mean level must be farther from that of real images to be named
REASON = (
    "The likely reason: a deterministic sampler carries the errors of the network's predictions to the end, for "
    "example in the brightness. The noise of the ancestral steps corrects them."
)


@dataclass(frozen=True)
class Combination:
    """A sampler, diffusion settings that only concern sampling, and the width of the averaged weights."""

    given: Mapping[str, Any]
    """The settings that are swept."""
    sampler: SamplerConfig
    diffusion: DiffusionConfig
    ema_width: float | None = None
    """None: the weights are those of the model."""

    @property
    def network_calls(self) -> int:
        """For each image. Guidance needs two predictions for each of the sampler's."""
        steps = len(sampling_timesteps(self.diffusion, self.sampler))
        calls = {"heun": 2 * steps - 1, "midpoint": 2 * steps}.get(self.sampler.sampler, steps)
        return calls if self.sampler.guidance == 1 else 2 * calls

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.given.items())


@dataclass(frozen=True)
class Point:
    """A combination and how good its images are."""

    combination: Combination
    scores: Scores
    seconds: float | None
    """Time in which the images were drawn; None if some of them were there already."""
    mean_level: float
    """Mean of all pixels, 0 to 255."""

    @property
    def distance(self) -> float | None:
        """The FID; the KID if there is no FID."""
        return self.scores.kid if self.scores.fid is None else self.scores.fid

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        c = self.combination
        return {
            "settings": dict(c.given),
            "sampler": asdict(c.sampler),
            "ema_width": c.ema_width,
            "network_calls": c.network_calls,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "scores": self.scores.as_dict(),
        }


def read_settings(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by setting, from texts such as "sampler=ddpm,ddim num_steps=10,20". UserError for anything else."""
    found: dict[str, list[str]] = {}
    for text in " ".join(texts).split():
        name, equals, values = text.partition("=")
        name = name.replace("-", "_")
        if not equals or not all(values.split(",")):
            raise UserError(f"sweep {text}: expected NAME=VALUE,VALUE, such as sampler=ddpm,ddim.")
        if name not in SETTINGS:
            raise UserError(f"sweep {text}: {name} is no setting of sampling. Expected one of {', '.join(SETTINGS)}.")
        found[name] = list(dict.fromkeys(values.split(",")))
    if not found:
        raise UserError("sweep: expected settings and their values, such as sampler=ddpm,ddim num_steps=10,20.")
    return found


def combinations(
    settings: Mapping[str, Sequence[str]],
    sampler: SamplerConfig,
    diffusion: DiffusionConfig,
    log: Callable[[str], None] = print,
) -> list[Combination]:
    """The product of the values, without what cannot be combined, which is logged.

    Args:
        settings: values by name, as in `read_settings`.
        sampler, diffusion: the other settings.

    Raises:
        UserError: a value that is not of the setting's type, or no combination is possible.
    """
    values = {name: [read_value(name, text) for text in texts] for name, texts in settings.items()}
    found: dict[Any, Combination] = {}
    for chosen in itertools.product(*values.values()):
        given = dict(zip(values, chosen, strict=True))
        of_sampler = {name: value for name, value in given.items() if name in SAMPLER_SETTINGS}
        of_diffusion = {name: value for name, value in given.items() if name in SAMPLING_SETTINGS}
        parts = replace(sampler, **of_sampler), replace(diffusion, **of_diffusion)
        each = Combination(given, *parts, given.get(EMA_WIDTH))
        try:
            each.diffusion.check()
            check_sampler(each.sampler, each.diffusion)
        except UserError as error:
            log(f"Skipped {each}: {error}")
            continue
        has_variance = each.sampler.sampler == "ddpm"
        sampled = each.sampler
        if sampled.guidance == 1:
            sampled = replace(sampled, guidance_rescale=0.0, guidance_interval=None)
        effects = each.diffusion if has_variance else replace(each.diffusion, variance="beta")
        effective = sampled, effects, each.ema_width
        if effective in found:
            log(f"Skipped {each}: the same as {found[effective]}.")
        else:
            found[effective] = each
    if not found:
        raise UserError("sweep: none of the combinations is possible.")
    return list(found.values())


def read_value(name: str, text: str) -> Any:
    """The value of a setting in a text. UserError if it has another type."""
    import pydantic

    classes = (SamplerConfig, DiffusionConfig, Combination)
    kind = next(f.type for c in classes for f in fields(c) if f.name == name)
    if text == "None" and NoneType in get_args(kind):
        return None
    try:
        return pydantic.TypeAdapter(kind).validate_strings(text)
    except pydantic.ValidationError as error:
        raise UserError(f"sweep {name}={text}: {error.errors()[0]['msg']}.") from None


def score_points(
    chosen: Sequence[Combination],
    draw: Callable[[Combination], tuple[ImageSet, bool]],
    reference: Reference,
    **settings,
) -> Iterator[Point]:
    """The points, one after the other.

    Args:
        chosen: from `combinations`.
        draw: makes the images of a combination, and says whether some of them were there already.
        reference: what they are compared with.
        settings: further arguments of `score`.
    """
    for each in chosen:
        start = time.perf_counter()
        images, were_there = draw(each)
        seconds = None if were_there else time.perf_counter() - start
        yield Point(each, score(images, reference, **settings), seconds, float(np.mean(images.images)))


def best_points(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats with as many network calls or fewer, by number of calls."""
    known = [point for point in points if point.distance is not None]
    ordered = sorted(known, key=lambda point: (point.combination.network_calls, point.distance))
    best: list[Point] = []
    for point in ordered:
        if not best or point.distance < best[-1].distance:
            best.append(point)
    return best


def warnings(points: Sequence[Point], real_level: float | None = None) -> list[str]:
    """A line for each deterministic sampler that is far worse than the ancestral one with as many network calls, and
    the likely reason.

    real_level: mean of the pixels of real images, 0 to 255.
    """
    found = []
    for point, other in itertools.product(points, points):
        c, o = point.combination, other.combination
        same = o.network_calls == c.network_calls and o.diffusion.clip == c.diffusion.clip
        same = same and o.ema_width == c.ema_width
        if same and o.sampler.sampler == "ddpm" and c.sampler.is_deterministic and is_far_worse(point, other):
            line = f"{c} is far worse than {o}: FID {point.scores.fid:.4g} and {other.scores.fid:.4g}"
            found.append(f"{line}{levels(point, other, real_level)}.")
    return [*found, REASON] if found else []


def levels(point: Point, other: Point, real_level: float | None) -> str:
    """The mean levels of two sets of images, if the first is clearly farther from real images."""
    if real_level is None or abs(point.mean_level - real_level) < abs(other.mean_level - real_level) + LEVELS:
        return ""
    return (
        f", mean level of the pixels {point.mean_level:.0f} and {other.mean_level:.0f}, of real ones {real_level:.0f}"
    )


def is_far_worse(point: Point, other: Point) -> bool:
    one, two = point.scores, other.scores
    if one.fid is None or two.fid is None:
        return False
    return one.fid > FAR_WORSE * two.fid and one.fid_interval[0] > two.fid_interval[1]


def table(points: Sequence[Point]) -> str:
    """A row for each point. * marks `best_points`. Seconds are "kept" where images were there already."""
    best = best_points(points)
    names = list(points[0].combination.given)
    accuracy = ["class accuracy"] if any(point.scores.class_accuracy is not None for point in points) else []
    rows = [["", *names, "calls", "FID", "interval", "KID", "precision", "recall", *accuracy, "seconds"]]
    for point in points:
        scores = point.scores
        interval = "-" if scores.fid_interval is None else "{:.4g} to {:.4g}".format(*scores.fid_interval)
        numbers = [(scores.fid, "{:.4g}"), (scores.kid, "{:.3g}"), (scores.precision, "{:.3f}")]
        numbers += [(value, "{:.3f}") for value in (scores.recall, scores.class_accuracy)[: 1 + len(accuracy)]]
        texts = ["-" if value is None else form.format(value) for value, form in numbers]
        given = [str(value) for value in point.combination.given.values()]
        calls = f"{point.combination.network_calls:,}"
        mark = "*" if any(point is each for each in best) else ""
        rows.append(
            [
                mark,
                *given,
                calls,
                texts[0],
                interval,
                *texts[1:],
                "kept" if point.seconds is None else f"{point.seconds:.0f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def with_settings(model: Model, combination: Combination) -> Model:
    """The model with the diffusion settings of a combination."""
    return replace(model, info=replace(model.info, diffusion=combination.diffusion))
