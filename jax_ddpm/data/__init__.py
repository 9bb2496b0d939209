"""Images to train on: digits, any image data set of tensorflow_datasets, a folder of pictures.

NumPy and Pillow only: neither jax, torch nor TensorFlow is imported here. What TensorFlow is needed for, preparing a
data set that is not there yet, happens in a child process.
"""

from jax_ddpm.data.order import batch_indices
from jax_ddpm.data.pixels import to_float, to_uint8
from jax_ddpm.data.sources import ImageData, load

__all__ = ["ImageData", "batch_indices", "load", "to_float", "to_uint8"]
