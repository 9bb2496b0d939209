"""`jax-ddpm evaluate --nearest OUT.png`: the training images nearest to the evaluated ones, and the share of copies."""

from pathlib import Path

from jax_ddpm.commands.evaluating import Evaluation
from jax_ddpm.evaluation.image_sets import ImageSet
from jax_ddpm.evaluation.nearest import nearest_images, picture
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.files import atomic_path


def show_nearest(evaluation: Evaluation, images: ImageSet, path: Path) -> dict:
    """Print the share of copies, write the picture, and return the figures.

    Training images are those of the reference's data set, or the images of the reference if it is no data set.

    Raises:
        UserError: the picture cannot be written.
    """
    real = evaluation.real
    if real.data is not None:
        train, held_out = real.data.train, real.data.validation
    else:
        train, held_out = real.images, None if real.held_out is None else real.held_out.images
    found = nearest_images(images.images, train, held_out, evaluation.reference.extractor, progress=evaluation.bars)
    evaluation.bars.close()
    print(f"\n{found}")
    try:
        with atomic_path(path) as draft:
            picture(images.images, train, found).save(draft, format="PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from None
    print(f"Wrote the images with the smallest d_1/d_2 above their nearest training images: {path}")
    return found.as_dict()
