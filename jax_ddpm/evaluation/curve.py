"""Scores of the checkpoints of a run: how good its samples are over the training."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jax_ddpm.evaluation.classes import samples_with_labels
from jax_ddpm.evaluation.extractors import BATCH_SIZE
from jax_ddpm.evaluation.progress import Progress, named
from jax_ddpm.evaluation.reference import Reference
from jax_ddpm.evaluation.results import Result, append_result, samples_folder
from jax_ddpm.evaluation.samples import draw_samples, name_of_guide
from jax_ddpm.evaluation.scores import NAMES, Scores, score
from jax_ddpm.report import score_by_step
from jax_ddpm.sampling.samplers import ANCESTRAL
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.run_checkpoints import find_checkpoint, steps_of
from jax_ddpm.spec.text import some
from jax_ddpm.weights import Model, load_model

CURVE_FILE = "curve.png"


def checkpoint_steps(run: Path, text: str = "all") -> list[int]:
    """The steps that a text names: `all` checkpoints of a run, or steps such as 500,1000.

    Raises UserError for another text, and for a step without a checkpoint.
    """
    existing = steps_of(run)
    if not existing:
        raise UserError(
            f"{run} has no checkpoints: expected the folder of a run. Train with --keep-every to keep more."
        )
    if text == "all":
        return existing
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UserError(f"checkpoints = {text}: expected all, or steps such as {','.join(map(str, existing[:2]))}.")
    steps = sorted({int(word) for word in words})
    if missing := [step for step in steps if step not in existing]:
        held = some([str(each) for each in existing], 8)
        raise UserError(f"{run} has no checkpoint of step {missing[0]}: expected one of {held}.")
    return steps


def evaluate_checkpoints(
    run: str | Path,
    steps: Sequence[int],
    reference: Reference,
    num_images: int,
    *,
    weights: str | None = None,
    precision: str = "float32",
    sampler: SamplerConfig = ANCESTRAL,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    guide: Model | None = None,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
    **diffusion,
) -> list[tuple[int, Scores]]:
    """(step, scores) of checkpoints, each with its own samples from the same noise.

    Each result is added to RUN/evaluation/results.jsonl as soon as it is there. Samples are kept in RUN/evaluation, so
    a call that was interrupted goes on where it stopped. A checkpoint that is damaged or draws images that are not
    finite is logged and left out.

    Args:
        run: folder of a run.
        steps: from `checkpoint_steps`.
        reference: from `make_reference`.
        num_images: samples of each checkpoint.
        weights: "ema" or "raw". Default: EMA, if the run has them.
        precision, diffusion: as in `jax_ddpm.load_model`.
        sampler, seed, batch_size, guide: as in `draw_samples`.
        log: called with a line for each checkpoint.
        progress: called with what is computed, how much of it is done, and how much there is.

    Raises:
        UserError: all checkpoints are left out, or the images do not fit the reference.
    """
    run, found = Path(run), []
    for step in steps:
        start = time.perf_counter()
        try:
            model = load_model(run, precision=precision, weights=weights, step=step, log=lambda line: None, **diffusion)
            drawing = named(f"step {step}", num_images, progress)
            images = draw_samples(model, num_images, sampler, seed, batch_size, samples_folder(run), drawing, guide)
        except UserError as error:
            log(f"Step {step:,} is left out: {error}")
            continue
        images = samples_with_labels(images, model.info, reference)
        scores = score(images, reference, batch_size=batch_size, progress=progress)
        kind, seconds = find_checkpoint(run, weights, step).weights, time.perf_counter() - start
        used = model.info.diffusion
        name = name_of_guide(guide, sampler)
        append_result(run, Result(step, kind, sampler, seed, scores.as_dict(), seconds, diffusion=used, guide=name))
        found.append((step, scores))
    if not found:
        raise UserError(f"None of the checkpoints in {run} can be evaluated.")
    return found


def table_by_step(found: Sequence[tuple[int, Scores]]) -> str:
    """A text: a line for each checkpoint, and one for held-out images; columns are the scores that there are."""
    floor = next((scores.floor for _, scores in found if scores.floor), None)
    lines = [(f"{step:,}", scores) for step, scores in found] + ([("real images", floor)] if floor else [])
    fields = [field for field in NAMES if any(getattr(scores, field) is not None for _, scores in found)]
    rows = [["step", *(NAMES[field] for field in fields)]]
    rows += [[name, *(scores.value_text(field) for field in fields)] for name, scores in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def figure_by_step(found: Sequence[tuple[int, Scores]]) -> Figure:
    """The FID over the steps, with its intervals and that of held-out images; the KID if there is no FID."""
    field = "fid" if any(scores.fid is not None for _, scores in found) else "kid"
    known = [(step, scores) for step, scores in found if getattr(scores, field) is not None]
    floor = next((scores.floor for _, scores in known if scores.floor), None)
    return score_by_step(
        [step for step, _ in known],
        [getattr(scores, field) for _, scores in known],
        [scores.fid_interval if field == "fid" else None for _, scores in known],
        None if floor is None else getattr(floor, field),
        f"{NAMES[field]} ({found[0][1].extractor['name']})",
        floor_interval=floor.fid_interval if floor and field == "fid" else None,
    )
