"""Parts of `jax-ddpm evaluate`: load the model, open the images, draw, score, and write what was asked for."""

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import jax
import numpy as np

from jax_ddpm import load_model
from jax_ddpm.commands.evaluate import EvaluateFlags
from jax_ddpm.commands.together import compare_weights
from jax_ddpm.evaluation import choices
from jax_ddpm.evaluation.classes import samples_with_labels
from jax_ddpm.evaluation.curve import checkpoint_steps
from jax_ddpm.evaluation.distances import Statistics, save_statistics, statistics, statistics_arrays
from jax_ddpm.evaluation.evaluating import first_images, open_features
from jax_ddpm.evaluation.image_sets import KINDS, ImageSet, open_images, size_text
from jax_ddpm.evaluation.progress import Bars, named
from jax_ddpm.evaluation.reference import Reference, make_reference
from jax_ddpm.evaluation.results import EVALUATION, Result, append_result, samples_folder
from jax_ddpm.evaluation.samples import draw_samples, name_of_guide
from jax_ddpm.evaluation.scores import score
from jax_ddpm.evaluation.sweep import EMA_WIDTH, combinations, read_settings, read_value
from jax_ddpm.spec.diffusion_config import DiffusionConfig, SamplerConfig, require_timesteps
from jax_ddpm.spec.ema_snapshots import find_average
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.files import atomic_path, cache_dir, write_text
from jax_ddpm.spec.labels import check_guidance
from jax_ddpm.spec.model_folder import has_model_file
from jax_ddpm.spec.model_info import describe
from jax_ddpm.spec.read_content import EXPECTED
from jax_ddpm.spec.run_checkpoints import averages_weights
from jax_ddpm.spec.run_config import DataConfig
from jax_ddpm.training.hosts import Hosts
from jax_ddpm.weights.model import Model


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
    chosen: list
    """What is scored: the combinations of --sweep, or the steps of --checkpoints; else empty."""
    sampler: SamplerConfig
    """The sampler of the model, if there is one."""
    guide: Model | None = None
    """The weaker model of --guide."""

    def images(self) -> ImageSet:
        """The images that are evaluated."""
        return self.given or self.draw(self.model, self.sampler)[0]

    def draw(self, model: Model, sampler: SamplerConfig) -> tuple[ImageSet, bool]:
        """Images of the model, or of a copy with other settings; and whether some of them were there already.

        They are kept in the run, or else in the cache.
        """
        flags = self.flags
        count = flags.num_images or choices.default_num_images()
        cache = Path(flags.data.cache_dir).expanduser() if flags.data.cache_dir else cache_dir()
        folder = samples_folder(self.run) if self.run else cache / "samples"
        progress, done = named(f"drawing {count:,} images", count, self.bars), []

        def keep(number: int) -> None:
            done.append(number)
            progress(number)

        guide = None if sampler.guidance == 1 else self.guide
        images = draw_samples(model, count, sampler, flags.seed, flags.batch_size, folder, keep, guide)
        return samples_with_labels(images, model.info, self.reference), done[0] > 0

    def add_result(
        self,
        sampler: SamplerConfig,
        diffusion: DiffusionConfig,
        scores: dict,
        seconds: float,
        ema_width: float | None = None,
    ) -> Path | None:
        """Add a line to the results of the run, if there is one, and return their file.

        ema_width: of the weights that drew the images. Default: that of --ema-width.
        """
        if self.run is None:
            return None
        loading = self.flags.loading
        width = ema_width or loading.ema_width
        weights = loading.weights or ("ema" if width or averages_weights(self.run) else "raw")
        step, seed = self.model.info.step, self.flags.seed
        drawn = {"diffusion": diffusion, "guide": name_of_guide(self.guide, sampler), "ema_width": width}
        result = Result(step, weights, sampler, seed, scores, seconds, **drawn)
        return append_result(self.run, result)


def run(flags: EvaluateFlags, hosts: Hosts | None = None) -> None:
    """All of the command. hosts: the processes that draw together; this is process 0."""
    start = time.perf_counter()
    evaluation = prepare(flags, hosts)
    if flags.sweep:
        from jax_ddpm.commands.sweeping import sweep  # here: it imports this file

        sweep(evaluation)
        return
    if flags.checkpoints:
        from jax_ddpm.commands.checkpoints import score_checkpoints  # here: it imports this file

        score_checkpoints(evaluation)
        return
    if hosts is not None:
        hosts.set("draw", "")
    images = evaluation.images()
    drawn = time.perf_counter()
    scores = score(images, evaluation.reference, batch_size=flags.batch_size, progress=evaluation.bars)
    evaluation.bars.close()
    seconds = time.perf_counter() - start
    print(f"\n{scores}")
    print(f"Time: {drawn - start:.0f} s to load and to draw, {seconds - (drawn - start):.0f} s for the numbers.")
    values = scores.as_dict()
    if flags.likelihood:
        from jax_ddpm.commands.bits import measure

        values["bits_per_dimension"] = measure(evaluation)
    if flags.nearest is not None:
        from jax_ddpm.commands.nearest import show_nearest

        values["nearest"] = show_nearest(evaluation, images, flags.nearest)
    write(evaluation, images, values, seconds)


def draw_for_process_0(flags: EvaluateFlags, hosts: Hosts) -> None:
    """Draw a part of the images, in another process than the first, which prepares and scores everything."""
    if flags.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    model = load_subject(flags, {**flags.loading.arguments, **asdict(flags.diffusion)})
    compare_weights(hosts, model)
    sampler = flags.sampling.fitting(model.info.diffusion)
    guide = (
        load_model(flags.guide, flags.image_size, flags.precision) if flags.guide and sampler.guidance != 1 else None
    )
    hosts.wait("draw")
    count = flags.num_images or choices.default_num_images()
    draw_samples(model, count, sampler, flags.seed, flags.batch_size, None, lambda done: None, guide)


def prepare(flags: EvaluateFlags, hosts: Hosts | None = None) -> Evaluation:
    """Load the model or open the images, and the reference with its features. Prints what is taken.

    hosts: the processes that draw together, which have the same model.
    """
    bars, model, given, run, chosen, guide, sampler = Bars(), None, None, None, [], None, SamplerConfig()
    settings = DataConfig(**asdict(flags.data), image_size=flags.image_size or DataConfig.image_size)
    if choices.holds_model(flags.subject):
        if flags.precision == "float64":
            jax.config.update("jax_enable_x64", True)
        settings_of_sweep = read_settings(flags.sweep) if flags.sweep else {}
        loading, run = {**flags.loading.arguments, **asdict(flags.diffusion)}, choices.run_of(flags.subject)
        for text in settings_of_sweep.get(EMA_WIDTH, ()):
            if (width := read_value(EMA_WIDTH, text)) is not None:
                find_average(flags.subject, width, flags.loading.step, flags.loading.weights)
        if flags.checkpoints:
            chosen = steps_to_score(flags, run)
            if not has_model_file(run):  # of a run that was interrupted
                loading["step"] = chosen[-1]
        model = load_subject(flags, loading)
        compare_weights(hosts, model)
        timesteps, sampler = model.info.diffusion.timesteps, flags.sampling.fitting(model.info.diffusion)
        if flags.likelihood:
            require_timesteps(model.info.diffusion, "--likelihood")
        if flags.num_timesteps is not None:
            fits = flags.num_timesteps <= timesteps
            require(fits, "--num-timesteps", flags.num_timesteps, f"expected from 2 to {timesteps}")
        if flags.sweep:
            chosen = combinations(settings_of_sweep, sampler, model.info.diffusion)
        guide = flags.guide and load_model(flags.guide, flags.image_size, flags.precision)
        check_guidances(flags, model, guide, [each.sampler for each in chosen] if flags.sweep else [sampler])
        print(describe(model.info, model.num_parameters))
        if model.info.network.label_count:
            print("Labels: the classes in turn.")
        shape = model.info.image_shape
    else:
        refuse_flags_of_models(flags)
        if hosts is not None:
            raise UserError(f"{flags.subject} is images, so nothing is drawn: omit --distributed.")
        given = first_images(open_images(flags.subject, None, settings), flags.num_images)
        if given.data is not None and flags.image_size is None:
            print(f"Images are resized to {size_text(given.image_shape)}. --image-size changes that.")
        shape = given.image_shape
    settings = choices.data_settings(run, settings)
    real = choices.reference_images(flags.reference, run, shape, settings)
    if flags.nearest is not None:
        for images, what in ((given, "evaluated images"), (real, "reference")):
            if images is not None and images.images is None:
                raise UserError(f"--nearest {flags.nearest} needs images, but of the {what} there are only statistics.")
    if flags.likelihood:
        choices.likelihood_images(real)
    name, why = choices.features_of(real)
    if flags.features is None:
        print(f"Features: {name}, since {why}. --features chooses others.")
    extractor = open_features(flags.features or name, real, settings.cache_dir, print)
    if model is not None and flags.num_images is None:
        print(f"{choices.default_num_images():,} images are drawn. --num-images changes that.")
    reference = make_reference(real, extractor, settings.cache_dir, flags.batch_size, progress=bars)
    return Evaluation(flags, bars, model, given, run, real, reference, chosen, sampler, guide)


def check_guidances(flags: EvaluateFlags, model: Model, guide: Model | None, samplers: list) -> None:
    """UserError for guidance that the model cannot have; and a line about weights below 0."""
    if guide is not None and all(sampler.guidance == 1 for sampler in samplers):
        raise UserError(f"--guide {flags.guide} has no effect at guidance 1: give another weight (--guidance 2).")
    for sampler in samplers:
        check_guidance(model.info, sampler, None if guide is None or sampler.guidance == 1 else guide.info)
    for weight in sorted({sampler.guidance for sampler in samplers if sampler.guidance < 0}):
        print(f"Guidance {weight:g} is below 0: it leads away from the label.")


def load_subject(flags: EvaluateFlags, loading: dict) -> Model:
    """The model. UserError if there is none, which names the images that could be given, too."""
    try:
        return load_model(flags.subject, flags.image_size, flags.precision, **loading)
    except UserError as error:
        if EXPECTED not in str(error):
            raise
        raise UserError(f"{str(error).removesuffix('.')};\nor images: {KINDS}.") from None


def steps_to_score(flags: EvaluateFlags, run: Path | None) -> list[int]:
    """The steps that --checkpoints names."""
    if run is None:
        raise UserError(f"--checkpoints {flags.checkpoints}: {flags.subject} is no run. Give the folder of a run.")
    return checkpoint_steps(run, flags.checkpoints)


def picture_path(evaluation: Evaluation, name: str) -> Path:
    """Where a picture goes: to --plot, into the run, or into the working directory."""
    path = evaluation.flags.plot or (Path(name) if evaluation.run is None else evaluation.run / EVALUATION / name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def refuse_flags_of_models(flags: EvaluateFlags) -> None:
    """UserError for flags that have no effect on images that are given."""
    for name in ("likelihood", "sweep", "checkpoints", "guide"):
        if getattr(flags, name):
            raise UserError(f"--{name} needs a model, and {flags.subject} is images: leave it out.")
    for part in (flags.sampling, flags.diffusion, flags.loading):
        default = type(part)()
        for name in (field.name for field in fields(part)):
            if getattr(part, name) != getattr(default, name):
                flag = name.replace("_", "-")
                raise UserError(
                    f"--{flag} is for models that draw images, and {flags.subject} is images: leave it out."
                )


def write(evaluation: Evaluation, images: ImageSet, scores: dict, seconds: float) -> None:
    """Write the files that the flags ask for, and a line in the results of the run."""
    flags, reference = evaluation.flags, evaluation.reference
    try:
        if flags.out is not None and flags.out.suffix == ".json":
            write_text(flags.out, json.dumps(scores, indent=2) + "\n")
            print(f"Wrote the scores: {flags.out}")
        elif flags.out is not None:
            write_images(flags.out, images, reference)
            print(f"Wrote the images and their features: {flags.out}")
        if flags.save_reference is not None:
            if reference.statistics is None:
                raise UserError(f"--save-reference {flags.save_reference}: the features are too many for statistics.")
            save_statistics(flags.save_reference, with_features(reference.statistics, reference))
            print(f"Wrote the statistics of the reference: {flags.save_reference}")
        model = evaluation.model
        if model and (path := evaluation.add_result(evaluation.sampler, model.info.diffusion, scores, seconds)):
            print(f"Added to {path}")
    except OSError as error:
        raise UserError(f"{error.filename or flags.out} cannot be written ({error.strerror}).") from None


def with_features(values: Statistics, reference: Reference) -> Statistics:
    """The statistics with what they are of."""
    return replace(values, features=(reference.extractor.name, reference.extractor.fingerprint))


def write_images(path: Path, images: ImageSet, reference: Reference) -> None:
    if images.images is None:
        raise UserError(f"--out {path}: there are no images, only statistics. Give a .json for the scores.")
    values = np.asarray(images.images)
    features = reference.extractor(values)
    arrays = {"images": values, "features": features}
    if reference.statistics is not None:
        arrays |= statistics_arrays(with_features(statistics(features), reference))
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)
