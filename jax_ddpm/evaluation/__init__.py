"""How good a model is: bits per dimension of images that it was not trained on."""

from jax_ddpm.evaluation.likelihood import bits_per_dimension
from jax_ddpm.spec.likelihood import Bound

__all__ = ["Bound", "bits_per_dimension"]
