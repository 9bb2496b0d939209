"""`evaluate`: how close the images of a model, or given ones, come to real images."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from jax_ddpm.data import ImageData, ShardedImages
from jax_ddpm.evaluation.choices import (
    data_settings,
    default_num_images,
    features_of,
    holds_model,
    reference_images,
    run_of,
)
from jax_ddpm.evaluation.classes import samples_with_labels
from jax_ddpm.evaluation.distances import Statistics
from jax_ddpm.evaluation.extractors import BATCH_SIZE, Extractor, features_of_function, open_extractor
from jax_ddpm.evaluation.image_sets import ImageSet, Shape, image_set, open_images, split_of
from jax_ddpm.evaluation.progress import Bars, Progress, named
from jax_ddpm.evaluation.reference import Reference, make_reference
from jax_ddpm.evaluation.results import Result, append_result, samples_folder
from jax_ddpm.evaluation.samples import draw_samples, name_of_guide
from jax_ddpm.evaluation.scores import Scores, score
from jax_ddpm.sampling.samplers import ANCESTRAL
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.flat_settings import SamplingSettings, sampling_settings
from jax_ddpm.spec.run_checkpoints import averages_weights
from jax_ddpm.spec.run_config import DataConfig
from jax_ddpm.weights.model import Model, load_model


def evaluate(
    subject: Any,
    reference: Any = None,
    features: str | Callable | None = None,
    num_images: int | None = None,
    *,
    sampler: SamplerConfig | str = ANCESTRAL,
    guide: Model | str | Path | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    data: DataConfig | None = None,
    cache_dir: str | Path | None = None,
    folder: str | Path | None = None,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
    **settings: Unpack[SamplingSettings],
) -> Scores:
    """Compare images with real ones: FID, KID, precision and recall, beside those of held-out real images.

    Args:
        subject: a `Model` or the path of one, from which images are drawn; or images: a text as in `open_images`, an
            array uint8 (N, H, W, C), or an `ImageSet`.
        reference: the real images: a text as in `open_images`, an `ImageData` (its training images), an array uint8
            (N, H, W, C), `Statistics`, an `ImageSet`, or a `Reference`. Default: the training images of the model's
            run.
        features: as in `open_extractor`, an `Extractor`, or a function from uint8 images (B, H, W, C) to features
            (B, D). Default: classifier if the data set of the reference has labels, else pixels.
        num_images: how many images to draw from a model, or to take of given ones; at least 2. Default: 1,000 of a
            model on a CPU, 10,000 on an accelerator, and all that are given.
        sampler: its name, such as "ddim", or all its settings. Default: ddpm with T steps. A model with classes draws
            them in turn.
        guide: a weaker model, for autoguidance, as in `jax_ddpm.sample`.
        seed: of the drawn images.
        batch_size: images at a time.
        data: where data sets lie, and which of their images are held out.
        cache_dir: folder for features of references and for classifiers. Default: that of the data set.
        folder: where drawn images are kept, so that an interrupted drawing goes on. Default: RUN/evaluation/samples for
            the path of a run, to whose RUN/evaluation/results.jsonl the scores are added, too.
        log: called with lines about what is taken, and before long operations.
        progress: called with what is computed, how much of it is done, and how much there is. Default: progress bars.
        settings: single settings of sampling, as in `jax_ddpm.sample`, such as num_steps=50.

    Raises:
        UserError: images that do not fit each other, or what cannot be found or read.
    """
    require(num_images is None or num_images >= 2, "num_images", num_images, "expected at least 2")
    start, run, model, bars = time.perf_counter(), None, None, Bars()
    progress = progress or bars
    if isinstance(subject, str | Path) and holds_model(str(subject)):
        run, subject = run_of(subject), load_model(subject, log=log)
    if isinstance(subject, Model):
        sampler, diffusion = sampling_settings(sampler, subject.info.diffusion, settings)
        subject = replace(subject, info=replace(subject.info, diffusion=diffusion))
        guide = load_model(guide, log=log) if isinstance(guide, str | Path) else guide
    else:
        if settings or sampler != ANCESTRAL:
            raise UserError("Images are given, so nothing is drawn: omit the sampler and its settings.")
        subject = as_images(subject, data, log)
    shape = subject.info.image_shape if isinstance(subject, Model) else subject.image_shape
    if not isinstance(reference, Reference):
        real = as_reference(reference, run, shape, data, log)
        cache_dir = cache_dir or data_settings(run, data).cache_dir
        if isinstance(features, Extractor):
            extractor = features
        elif callable(features):
            extractor = features_of_function(features)
        else:
            extractor = open_features(features or features_of(real)[0], real, cache_dir, log)
        reference = make_reference(real, extractor, cache_dir, batch_size, log, progress)
    elif features is not None:
        raise UserError("A Reference has its own features: omit features.")
    if isinstance(subject, Model):
        count, model = num_images or default_num_images(), subject
        drawing = named("images", count, progress)
        folder = folder or (samples_folder(run) if run else None)
        drawn = draw_samples(subject, count, sampler, seed, batch_size, folder, drawing, guide)
        subject = samples_with_labels(drawn, subject.info, reference)
    else:
        subject = first_images(subject, num_images)
    try:
        scores = score(subject, reference, batch_size=batch_size, progress=progress)
    finally:
        bars.close()
    if run is not None:
        weights = "ema" if averages_weights(run) else "raw"
        seconds, diffusion = time.perf_counter() - start, model.info.diffusion
        name = name_of_guide(guide, sampler)
        result = Result(
            model.info.step, weights, sampler, seed, scores.as_dict(), seconds, diffusion=diffusion, guide=name
        )
        try:
            log(f"Added to {append_result(run, result)}")
        except OSError as error:
            log(f"Not added to the results of {run}: they cannot be written ({error.strerror}).")
    return scores


def open_features(text: str, real: ImageSet, cache_dir: str | Path | None, log: Callable[[str], None]) -> Extractor:
    """The extractor that a text names, for a reference: with the classifier that its statistics are of."""
    known = None if real.statistics is None else real.statistics.features
    return open_extractor(text, real.data, cache_dir, log, known[1] if known and known[0] == text else None)


def as_images(given: Any, data: DataConfig | None, log: Callable[[str], None]) -> ImageSet:
    """The images, or statistics, that are evaluated."""
    if isinstance(given, ImageSet):
        return given
    if isinstance(given, Statistics):
        return ImageSet("statistics", statistics=given)
    if isinstance(given, str | Path):
        return open_images(str(given), None, data, log)
    return image_set(given)


def as_reference(
    given: Any, run: Path | None, shape: Shape | None, data: DataConfig | None, log: Callable[[str], None]
) -> ImageSet:
    """The real images."""
    if isinstance(given, ImageSet):
        return given
    if isinstance(given, ImageData):
        return split_of(given, "train")
    if isinstance(given, Statistics):
        return ImageSet("statistics", statistics=given)
    if isinstance(given, np.ndarray | ShardedImages):
        return image_set(given, "reference")
    return reference_images(None if given is None else str(given), run, shape, data, log)


def first_images(images: ImageSet, count: int | None) -> ImageSet:
    """The first images of a set, or all of them. UserError if there are fewer."""
    if count is None or images.images is None:
        return images
    if count > images.count:
        raise UserError(f"num_images = {count}: {images.name} has only {images.count} images.")
    labels = None if images.labels is None else images.labels[:count]
    return ImageSet(images.name, images.images[:count], labels=labels)
