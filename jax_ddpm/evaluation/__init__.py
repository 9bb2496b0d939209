"""How good a model is: bits per dimension of images that it was not trained on."""

from jax_ddpm.evaluation.flow import flow_bits_per_dimension
from jax_ddpm.evaluation.likelihood import bits_per_dimension
from jax_ddpm.spec.likelihood import Bound, FlowLikelihood

__all__ = ["Bound", "FlowLikelihood", "bits_per_dimension", "flow_bits_per_dimension"]
