"""`jax-ddpm evaluate RUN --checkpoints all`: scores over the training."""

import json
from dataclasses import asdict

from tqdm import tqdm

from jax_ddpm.commands.evaluating import Evaluation, picture_path
from jax_ddpm.evaluation.choices import default_num_images
from jax_ddpm.evaluation.curve import (
    CURVE_FILE,
    evaluate_checkpoints,
    figure_by_step,
    table_by_step,
)
from jax_ddpm.evaluation.results import results_file
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path, write_text


def score_checkpoints(evaluation: Evaluation) -> None:
    """Score the checkpoints that the flags name, print a table, and draw the curve."""
    flags, run = evaluation.flags, evaluation.run
    steps = evaluation.chosen
    print(f"{len(steps)} checkpoints: {', '.join(f'{step:,}' for step in steps)}")
    found = evaluate_checkpoints(
        run,
        steps,
        evaluation.reference,
        flags.num_images or default_num_images(),
        weights=flags.loading.weights,
        precision=flags.precision,
        sampler=evaluation.sampler,
        seed=flags.seed,
        batch_size=flags.batch_size,
        guide=evaluation.guide,
        log=tqdm.write,
        progress=evaluation.bars,
        **asdict(flags.diffusion),
    )
    evaluation.bars.close()
    last = found[-1][1]
    print(f"\n{table_by_step(found)}\n", *last.lines(), sep="\n")
    try:
        path = picture_path(evaluation, CURVE_FILE)
        with atomic_path(path) as draft:
            figure_by_step(found).savefig(draft, format="png", dpi=120)
        print(f"Wrote the curve: {path}")
        if flags.out is not None:
            values = [{"step": step, **scores.as_dict()} for step, scores in found]
            write_text(flags.out, json.dumps(values, indent=2) + "\n")
            print(f"Wrote the scores: {flags.out}")
    except OSError as error:
        raise UserError(f"{error.filename or flags.out} cannot be written ({error.strerror}).") from None
    print(f"Added to {results_file(run)}")
