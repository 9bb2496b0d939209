"""The scores of several runs side by side: results of `jax-ddpm evaluate`, bits, and scores of the training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jax_ddpm.training.run_charts import evaluated_features

if TYPE_CHECKING:
    from jax_ddpm.training.compare import ComparedRun

NONE = "-"
USUAL = {  # settings of sampling that are not named
    **{"spacing": "trailing", "eta": 0, "clip": "x0", "variance": "beta"},
    **{"guidance": 1, "guidance_rescale": 0, "guidance_interval": None},
}


def scores_table(runs: Sequence["ComparedRun"]) -> list[list[str]]:
    """Results of each run by each kind of features and reference; bits per dimension; FIDs of the training."""
    rows = []
    for kind in kinds_of(runs):
        for results in comparable_results(runs, kind):
            for name, text in {f"FID by {kind[0]} to {kind[2]}": fid_text, **DETAILS}.items():
                rows.append([name, *(text(each) if each else NONE for each in results)])
    rows += bits_rows(runs)
    for features in dict.fromkeys(name for run in runs for name in evaluated_features(run.rows)):
        found = [[row for row in run.rows if row.get(f"fid_{features}") is not None] for run in runs]
        texts = [at_step(each[-1][f"fid_{features}"], each[-1]["step"]) if each else NONE for each in found]
        rows.append([f"FID by {features}, during the training", *texts])
    return rows


def bits_rows(runs: Sequence["ComparedRun"]) -> list[list[str]]:
    """The newest bits per dimension of each run, and what they were computed with."""
    rows = []
    for name, measure in MEASURES.items():
        found = [newest_bits(run, name) for run in runs]
        if any(found):
            rows.append([f"bits per dimension, {measure}", *(bits_text(each) if each else NONE for each in found)])
            rows.append(["    held-out images", *(held_out_text(each) if each else NONE for each in found)])
            rows.append(["    weights", *(weights_text(each[1]) if each else NONE for each in found)])
    return rows


def newest_bits(run: "ComparedRun", name: str) -> tuple[dict, dict] | None:
    """The newest bits of a measure and the result that holds them; None if a run has none."""
    for result in reversed(run.results):
        if bits := (scores_of(result).get("bits_per_dimension") or {}).get(name):
            return bits, result
    return None


def bits_text(found: tuple[dict, dict]) -> str:
    return f"{found[0]['value']:.3f} +- {found[0]['standard_error']:.3f}"


def held_out_text(found: tuple[dict, dict]) -> str:
    return f"{found[0]['num_images']:,}, each at {found[0]['num_timesteps']:,} timesteps"


def scores_of(result: dict) -> dict:
    return result.get("scores") or {}


def scores_by_step(runs: Sequence["ComparedRun"]) -> list[tuple[str, str, dict[str, list[tuple[int, float]]]]]:
    """Scores of runs of which several steps were evaluated alike: the features, what is shown, (step, FID) by run.

    The newest result of each step is taken.
    """
    found = []
    for kind in kinds_of(runs):
        ways = dict.fromkeys(drawn(each) for run in runs for each in run.results if kind_of(each) == kind)
        for way in ways:
            points: dict[str, list[tuple[int, float]]] = {}
            for run in runs:
                alike = [each for each in run.results if kind_of(each) == kind and drawn(each) == way]
                values = {each["step"]: each["scores"].get("fid") for each in alike if each.get("step") is not None}
                points[run.name] = sorted((step, value) for step, value in values.items() if value is not None)
            if any(len(each) > 1 for each in points.values()):
                sampler, count, weights = way
                found.append((kind[0], f"{count:,} images to {kind[2]}, {sampler}, {weights} weights", points))
    return found


def comparable_results(runs: Sequence["ComparedRun"], kind: tuple[str, ...]) -> list[list[dict | None]]:
    """Results of a kind, one of each run, that were drawn alike: the newest of each way of drawing that two runs share.

    The newest results of all runs if no two of them share one.
    """
    found = [[result for result in run.results if kind_of(result) == kind] for run in runs]
    by_way = [{drawn(result): result for result in results} for results in found]
    ways = dict.fromkeys(way for each in by_way for way in each)
    shared = [way for way in ways if sum(way in each for each in by_way) > 1]
    if shared:
        return [[each.get(way) for each in by_way] for way in shared]
    return [[results[-1] if results else None for results in found]]


def kinds_of(runs: Sequence["ComparedRun"]) -> list[tuple[str, ...]]:
    """All kinds of features and references of the results of runs."""
    return list(dict.fromkeys(kind for run in runs for result in run.results if (kind := kind_of(result))))


def kind_of(result: dict) -> tuple[str, ...] | None:
    """Name and hash of the features and of the reference of a result; None for one without scores."""
    scores = result.get("scores") or {}
    if scores.get("fid") is None and scores.get("kid") is None:
        return None
    return tuple(
        str((scores.get(part) or {}).get(key)) for part in ("extractor", "reference") for key in ("name", "fingerprint")
    )


def fid_text(result: dict) -> str:
    interval = result["scores"].get("fid_interval")
    return number(result["scores"].get("fid")) + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "")


def number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def at_step(value: float, step: int | None) -> str:
    return f"{value:.4g}" + ("" if step is None else f", step {step:,}")


def precision_text(result: dict) -> str:
    precision, recall = (result["scores"].get(name) for name in ("precision", "recall"))
    return NONE if precision is None else f"{precision:.3f}, {recall:.3f}"


def sampler_text(result: dict) -> str:
    sampler = result.get("sampler") or {}
    settings = {**(result.get("diffusion") or {}), **sampler}
    unusual = [f", {name} {settings[name]}" for name, usual in USUAL.items() if settings.get(name, usual) != usual]
    unusual += [f", guide {result['guide']}"] if result.get("guide") else []
    return f"{sampler.get('sampler')}, {sampler.get('num_steps') or 'T'} steps{''.join(unusual)}"


def drawn(result: dict) -> tuple:
    """How the samples of a result were drawn."""
    return sampler_text(result), result["scores"].get("num_images"), result.get("weights")


def weights_text(result: dict) -> str:
    return str(result.get("weights")) + ("" if result.get("step") is None else f", step {result['step']:,}")


DETAILS = {
    "    FID of held-out images": lambda result: number((result["scores"].get("floor") or {}).get("fid")),
    "    KID": lambda result: number(result["scores"].get("kid")),
    "    precision, recall": precision_text,
    "    images": lambda result: f"{result['scores'].get('num_images') or 0:,}",
    "    sampler": sampler_text,
    "    weights": weights_text,
}


MEASURES = {"bound": "bound", "ode": "ODE"}


def notes_on_scores(runs: Sequence["ComparedRun"]) -> list[str]:
    """Sentences on scores that do not compare."""
    notes = []
    for kind in kinds_of(runs):
        ways = {drawn(result) for result in comparable_results(runs, kind)[0] if result}
        if len(ways) > 1:
            notes.append(f"Samples for the FID by {kind[0]} were drawn in different ways: do not compare these FIDs.")
    for name, measure in MEASURES.items():
        found = [each for run in runs if (each := newest_bits(run, name))]
        ways = {(held_out_text(each), str(scores_of(each[1]).get("reference"))) for each in found}
        if len(ways) > 1:
            notes.append(
                f"The bits per dimension ({measure}) are of different images or timesteps: do not compare them."
            )
    return notes
