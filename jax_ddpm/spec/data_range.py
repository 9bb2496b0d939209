"""Images in the range of values that a network was trained on: from 8-bit levels, and from and to [-1, 1].

The arrays may be those of NumPy, JAX or PyTorch, of any shape and of a floating dtype. In the usual range, [-1, 1], the
last three functions return their argument.
"""

USUAL = (-1.0, 1.0)
"""The range of Ho et al. 2020, section 3.3, and of most networks."""


def from_levels(levels, data_range: tuple[float, float]):
    """8-bit levels, 0 to 255 as floats: 0 becomes the lower limit and 255 the upper one."""
    low, high = data_range
    return levels / 127.5 - 1 if data_range == USUAL else levels / 255 * (high - low) + low


def to_data_range(images, data_range: tuple[float, float]):
    """Images in [-1, 1], in the range of the network. Values outside are mapped in the same way."""
    low, high = data_range
    return images if data_range == USUAL else (images + 1) / 2 * (high - low) + low


def from_data_range(x, data_range: tuple[float, float]):
    """The inverse of `to_data_range`."""
    low, high = data_range
    return x if data_range == USUAL else (x - low) / (high - low) * 2 - 1


def deviation_from_data_range(sigma, data_range: tuple[float, float]):
    """A standard deviation of values in the range of the network, as that of the same values in [-1, 1]."""
    low, high = data_range
    return sigma if data_range == USUAL else sigma * (2 / (high - low))
