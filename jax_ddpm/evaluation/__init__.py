"""How good a model is: distances between its images and real ones, and bits per dimension of held-out images."""

from jax_ddpm.evaluation.curve import checkpoint_steps, evaluate_checkpoints, figure_by_step, table_by_step
from jax_ddpm.evaluation.distances import Statistics
from jax_ddpm.evaluation.evaluating import evaluate
from jax_ddpm.evaluation.extractors import Extractor, open_extractor
from jax_ddpm.evaluation.flow import flow_bits_per_dimension
from jax_ddpm.evaluation.image_sets import ImageSet, open_images
from jax_ddpm.evaluation.likelihood import bits_per_dimension
from jax_ddpm.evaluation.reference import Reference, make_reference
from jax_ddpm.evaluation.results import as_columns, read_results
from jax_ddpm.evaluation.samples import draw_samples
from jax_ddpm.evaluation.scores import Scores, score
from jax_ddpm.spec.likelihood import Bound, FlowLikelihood

__all__ = [
    "Bound",
    "Extractor",
    "FlowLikelihood",
    "ImageSet",
    "Reference",
    "Scores",
    "Statistics",
    "as_columns",
    "bits_per_dimension",
    "checkpoint_steps",
    "draw_samples",
    "evaluate",
    "evaluate_checkpoints",
    "figure_by_step",
    "flow_bits_per_dimension",
    "make_reference",
    "open_extractor",
    "open_images",
    "read_results",
    "score",
    "table_by_step",
]
