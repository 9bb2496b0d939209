"""Parts of `jax-ddpm evaluate`: load the model, open the images, draw, score, and write what was asked for."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jax_ddpm import load_model
from jax_ddpm.commands.evaluate import EvaluateFlags
from jax_ddpm.evaluation import choices
from jax_ddpm.evaluation.distances import save_statistics
from jax_ddpm.evaluation.evaluating import first_images
from jax_ddpm.evaluation.extractors import open_extractor
from jax_ddpm.evaluation.image_sets import ImageSet, open_images
from jax_ddpm.evaluation.reference import Reference, make_reference, named
from jax_ddpm.evaluation.results import Result, append_result, samples_folder
from jax_ddpm.evaluation.samples import draw_samples
from jax_ddpm.evaluation.scores import Scores, score
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path, cache_dir, write_text
from jax_ddpm.spec.model_info import describe
from jax_ddpm.spec.run_config import DataConfig
from jax_ddpm.weights.model import Model


class Bars:
    """A progress bar for each thing that is computed; shown if it takes more than half a second."""

    def __init__(self):
        self.bar: tqdm | None = None
        self.what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.bar is None or self.what != what:
            self.close()
            self.what, self.bar = what, tqdm(total=total, desc=what, delay=0.5, leave=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


@dataclass(frozen=True)
class Evaluation:
    """What is compared with what."""

    flags: EvaluateFlags
    bars: Bars
    model: Model | None
    given: ImageSet | None
    """The images that are evaluated, if no model draws them."""
    run: Path | None
    """The run that the model belongs to."""
    real: ImageSet
    reference: Reference

    def draw(self) -> ImageSet:
        """The images that are evaluated."""
        flags = self.flags
        if self.model is None:
            return first_images(self.given, flags.num_images)
        count = flags.num_images or choices.default_num_images()
        folder = samples_folder(self.run) if self.run else cache_dir() / "samples"
        progress = named(f"drawing {count:,} images", count, self.bars)
        images = draw_samples(self.model, count, flags.sampling, flags.seed, flags.batch_size, folder, progress)
        return ImageSet("samples", images)


def run(flags: EvaluateFlags) -> None:
    """All of the command."""
    start = time.perf_counter()
    evaluation = prepare(flags)
    images = evaluation.draw()
    drawn = time.perf_counter()
    scores = score(images, evaluation.reference, batch_size=flags.batch_size, progress=evaluation.bars)
    evaluation.bars.close()
    seconds = time.perf_counter() - start
    print(f"\n{scores}")
    print(f"Time: {seconds:.0f} s, {drawn - start:.0f} s of it until the images were there.")
    write(evaluation, images, scores, seconds)


def prepare(flags: EvaluateFlags) -> Evaluation:
    """Load the model or open the images, and the reference with its features. Prints what is taken."""
    bars, model, given, run = Bars(), None, None, None
    settings = DataConfig(**asdict(flags.data))
    if choices.holds_model(flags.subject):
        if flags.precision == "float64":
            jax.config.update("jax_enable_x64", True)
        loading = {**flags.loading.arguments, **asdict(flags.diffusion)}
        model = load_model(flags.subject, flags.image_size, flags.precision, **loading)
        flags.sampling.check(model.info.diffusion.timesteps)
        print(describe(model.info, model.num_parameters))
        run, shape = choices.run_of(flags.subject), model.info.image_shape
    else:
        given = open_images(flags.subject, None, settings)
        shape = given.image_shape
    real = choices.reference_images(flags.reference, run, shape, settings)
    name = flags.features or choices.default_features(real.data)
    extractor = open_extractor(name, real.data, settings.cache_dir)
    if flags.features is None:
        print(f"Features: {name}. --features chooses others.")
    if model is not None and flags.num_images is None:
        print(f"{choices.default_num_images():,} images are drawn. --num-images changes that.")
    reference = make_reference(real, extractor, settings.cache_dir, flags.batch_size, progress=bars)
    return Evaluation(flags, bars, model, given, run, real, reference)


def write(evaluation: Evaluation, images: ImageSet, scores: Scores, seconds: float) -> None:
    """Write the files that the flags ask for, and a line in the results of the run."""
    flags, model, reference = evaluation.flags, evaluation.model, evaluation.reference
    try:
        if flags.out is not None and flags.out.suffix == ".json":
            write_text(flags.out, json.dumps(scores.as_dict(), indent=2) + "\n")
            print(f"Wrote the scores: {flags.out}")
        elif flags.out is not None:
            write_images(flags.out, images, reference)
            print(f"Wrote the images and their features: {flags.out}")
        if flags.save_reference is not None:
            if reference.statistics is None:
                raise UserError(f"--save-reference {flags.save_reference}: the features are too many for statistics.")
            save_statistics(flags.save_reference, reference.statistics)
            print(f"Wrote the statistics of the reference: {flags.save_reference}")
        if evaluation.run is not None:
            weights = flags.loading.weights
            result = Result(model.info.step, weights, flags.sampling, flags.seed, scores.as_dict(), seconds)
            print(f"Added to {append_result(evaluation.run, result)}")
    except OSError as error:
        raise UserError(f"{error.filename or flags.out} cannot be written ({error.strerror}).") from None


def write_images(path: Path, images: ImageSet, reference: Reference) -> None:
    if images.images is None:
        raise UserError(f"--out {path}: there are no images, only statistics. Give a .json for the scores.")
    values = np.asarray(images.images)
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez(file, images=values, features=reference.extractor(values))
