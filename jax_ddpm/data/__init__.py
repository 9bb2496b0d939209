"""Images to train on: digits, any image data set of tensorflow_datasets, or a folder of image files.

Uses NumPy and Pillow, and imports neither jax nor torch. Only preparing a new data set needs TensorFlow; that runs in a
child process.
"""

from jax_ddpm.data.image_data import ImageData
from jax_ddpm.data.order import batch_indices
from jax_ddpm.data.pixels import to_float, to_uint8
from jax_ddpm.data.sources import load

__all__ = ["ImageData", "batch_indices", "load", "to_float", "to_uint8"]
