"""Image sizes: one integer for square images, or height and width."""

from collections.abc import Sequence

from jax_ddpm.spec.errors import require

ImageSize = int | tuple[int, int]


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image size: 32 is 32x32, (32, 48) is 32 high and 48 wide. Raises UserError for anything else."""
    sizes = tuple(size) if isinstance(size, list | tuple) else (size, size)
    fits = len(sizes) == 2 and all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in sizes)
    require(fits, "image_size", size, "expected an integer of at least 1, or two: height and width")
    return sizes


def shortest(size: int | Sequence[int]) -> ImageSize:
    """The same size in its shortest form: 32 for (32, 32), a tuple for [32, 48]. Checks nothing."""
    sizes = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return size if sizes == (size, size) else sizes[0] if sizes == sizes[:1] * 2 else sizes
