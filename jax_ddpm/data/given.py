"""Images and masks that a user gives to a model, read at exactly its size: how to resize is the user's choice."""

import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from jax_ddpm.data.collect import reason
from jax_ddpm.data.folder import open_folder
from jax_ddpm.data.pixels import open_image
from jax_ddpm.spec.errors import UserError, require

Shape = tuple[int, int, int]


def given_images(path: Path, image_shape: Shape) -> np.ndarray:
    """Of an image file, a folder of such, or the `images` of a .npz: uint8 (N, *image_shape).

    Colour becomes gray, and gray colour, as the model has it. Raises UserError for what cannot be read, and for images
    of another size.
    """
    if path.suffix == ".npz":
        return _arrays(path, image_shape)
    files = [file for _, file in open_folder(str(path)).train.read()] if path.is_dir() else [path]
    return np.stack([np.asarray(_exactly(file, image_shape)).reshape(image_shape) for file in files])


def given_mask(path: Path, image_shape: Shape) -> np.ndarray:
    """Of an image file: bool (H, W), True where it is nearer to white than to black. Errors as `given_images`."""
    return np.asarray(_exactly(path, (*image_shape[:2], 1))) >= 128


def _exactly(path: Path, image_shape: Shape) -> Image.Image:
    try:
        image = open_image(path, image_shape[2])
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything at a damaged file
        raise UserError(
            f"{path} cannot be read ({reason(error)}).\nExpected a png, jpeg, webp, bmp or gif file."
        ) from None
    height, width, _ = image_shape
    if image.size != (width, height):
        code = f"from PIL import Image; Image.open({str(path)!r}).resize(({width}, {height})).save('resized.png')"
        raise UserError(
            f"{path} has {image.width}x{image.height} pixels, the model's images have {width}x{height}.\n"
            f"Resize it, for example by: python -c {shlex.quote(code)}"
        )
    return image


def _arrays(path: Path, image_shape: Shape) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
    except Exception as error:  # NumPy too
        raise UserError(
            f"{path} cannot be read ({reason(error)}).\nExpected a .npz with an array `images`, uint8 (N, H, W, C)."
        ) from None
    wanted = f"expected uint8 images, (N, {', '.join(map(str, image_shape))})"
    fits = images.dtype == np.uint8 and images.ndim == 4 and len(images) and images.shape[1:] == tuple(image_shape)
    require(fits, f"{path}: images", f"{images.dtype} {images.shape}", wanted)
    return images
