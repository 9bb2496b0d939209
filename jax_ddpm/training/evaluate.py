"""`--evaluate-every`: during a training, scores samples of the current weights against the training images."""

import time
from collections.abc import Callable
from dataclasses import replace

from flax import nnx
from tqdm import tqdm

from jax_ddpm.data import ImageData
from jax_ddpm.evaluation.choices import default_features
from jax_ddpm.evaluation.classes import samples_with_labels
from jax_ddpm.evaluation.extractors import open_extractor
from jax_ddpm.evaluation.image_sets import split_of
from jax_ddpm.evaluation.reference import make_reference
from jax_ddpm.evaluation.samples import draw_samples
from jax_ddpm.evaluation.scores import Scores, score
from jax_ddpm.spec.diffusion_config import SamplerConfig
from jax_ddpm.spec.errors import UserError, require
from jax_ddpm.spec.model_info import ModelInfo
from jax_ddpm.spec.run_config import RunConfig
from jax_ddpm.training.progress import duration
from jax_ddpm.training.run_charts import FLOOR
from jax_ddpm.weights import Model

RECORDED = ("fid", "kid", "precision", "recall")  # scores in metrics.jsonl


class Evaluation:
    """Scores of samples by step. Their noise depends only on the run's seed, so steps can be compared.

    It draws no random numbers of the training, so the training is the same without it.
    """

    def __init__(self, config: RunConfig, images: ImageData, info: ModelInfo, graph, log: Callable[[str], None]):
        """Prepares the reference; the classifier is trained now if it is not in the cache.

        Raises UserError for features that do not fit the images.
        """
        output = config.output
        self.config, self.info, self.graph, self.log = config, info, graph, log
        self.sampler = evaluation_sampler(config)
        features = output.evaluate_features or default_features(images)
        if features == "classifier" and images.labels is None:
            expected = f"{images.name} has no labels; expected pixels or inception:FILE"
            require(False, "evaluate_features", features, expected)
        extractor = open_extractor(features, images, config.data.cache_dir, log)
        self.reference = make_reference(split_of(images, "train"), extractor, config.data.cache_dir, log=log)
        log(
            f"Evaluation every {output.evaluate_every:,} steps: {output.evaluate_images:,} samples "
            f"({self.sampler.sampler}, {self.sampler.num_steps} steps) against the training images, "
            f"by the features {extractor.name}."
        )

    def __call__(self, weights: nnx.State, buffers: nnx.State, step: int) -> dict[str, float | None]:
        """The scores of the weights for sampling (the EMA, if on), by their names in metrics.jsonl.

        None for samples that have no scores, such as those of a training that has diverged.
        """
        name, start = self.reference.extractor.name, time.perf_counter()
        try:
            found = self.score(Model(nnx.merge(self.graph, weights, buffers), self.info))
        except UserError as error:
            self.log(f"Step {step:,}: the samples cannot be scored: {error}")
            return {f"fid_{name}": None}
        row = {f"{score}_{name}": getattr(found, score) for score in RECORDED}
        if found.floor is not None:
            row |= {f"{score}_{name}{FLOOR}": getattr(found.floor, score) for score in ("fid", "kid")}
        floor = f" (held-out images: {found.floor.fid:.4g})" if found.floor and found.floor.fid is not None else ""
        fid = "none" if found.fid is None else f"{found.fid:.4g}"
        self.log(f"Step {step:,}: FID by {name} {fid}{floor}, in {duration(time.perf_counter() - start)}.")
        return row

    def score(self, model: Model) -> Scores:
        output, seed = self.config.output, self.config.training.seed
        with tqdm(total=output.evaluate_images, desc="evaluating", unit="image", leave=False, mininterval=1) as bar:
            images = draw_samples(
                model,
                output.evaluate_images,
                self.sampler,
                seed,
                min(output.evaluate_images, max(64, self.config.training.batch_size)),
                progress=lambda done: bar.update(done - bar.n),
            )
        return score(samples_with_labels(images, self.info, self.reference), self.reference)


def evaluation_sampler(config: RunConfig) -> SamplerConfig:
    """The run's sampler in `evaluate_steps` steps; ddim in place of ddpm, whose samples need many steps."""
    steps = min(config.output.evaluate_steps, config.diffusion.timesteps)
    kind = "ddim" if config.sampling.sampler == "ddpm" else config.sampling.sampler
    return replace(config.sampling, sampler=kind, num_steps=steps)
