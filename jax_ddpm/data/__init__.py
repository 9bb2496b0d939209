"""Images to train on: digits, data sets of tensorflow_datasets, folders and zip files of pictures, arrays.

Uses NumPy and Pillow, and imports neither jax nor torch. Only preparing a new data set needs TensorFlow; that runs in a
child process.
"""

from jax_ddpm.data.image_data import ImageData
from jax_ddpm.data.order import batch_indices
from jax_ddpm.data.pixels import to_float, to_uint8
from jax_ddpm.data.shards import ShardedImages
from jax_ddpm.data.sources import from_arrays, load

__all__ = ["ImageData", "ShardedImages", "batch_indices", "from_arrays", "load", "to_float", "to_uint8"]
