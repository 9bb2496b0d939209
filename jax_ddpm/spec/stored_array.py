"""Arrays of a file that are read only when they are needed."""

from collections.abc import Callable

import numpy as np


class StoredArray:
    """An array whose shape is known and whose values are still in a file.

    Args:
        shape: its shape.
        read: returns its values, an array of that shape. Any exception means that the file is damaged.
    """

    def __init__(self, shape: tuple[int, ...], read: Callable[[], np.ndarray]):
        self.shape, self.read = shape, read

    @property
    def ndim(self) -> int:
        return len(self.shape)


Array = StoredArray | np.ndarray


def numbers(array: Array) -> np.ndarray:
    """The numbers of an array in float64; NaN for a damaged one, whose file is refused where its weights are read."""
    try:
        return np.asarray(array if isinstance(array, np.ndarray) else array.read(), np.float64)
    except Exception:  # a damaged file can raise anything
        return np.full(array.shape, np.nan)


def number_type(name: str) -> np.dtype | None:
    """NumPy's little-endian dtype for a name such as "float32" or "Float"; None for other types.

    bfloat16 has the dtype of its bits, uint16: see `from_bits`.
    """
    code = NUMBER_TYPES.get(name.lower())
    return None if code is None else np.dtype(code)


NUMBER_TYPES = {
    **{"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "half": "<f2", "float16": "<f2"},
    **{"bfloat16": "<u2", "long": "<i8", "int64": "<i8", "int": "<i4", "int32": "<i4", "short": "<i2", "int16": "<i2"},
    **{"char": "i1", "int8": "i1", "byte": "u1", "uint8": "u1", "bool": "?"},
}


def from_bits(data: bytes | bytearray | memoryview, name: str, big_endian: bool = False) -> np.ndarray:
    """The numbers in `data`, of the type `name`; bfloat16 becomes float32, since NumPy has no bfloat16."""
    dtype = number_type(name)
    values = np.frombuffer(data, dtype.newbyteorder(">") if big_endian else dtype)
    return (values.astype(np.uint32) << 16).view(np.float32) if name.lower() == "bfloat16" else values


def strided(values: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A copy of the elements of `values` (N,) that a tensor consists of, from the first one. strides count elements.

    Raises ValueError if there are too few elements.
    """
    if len(values) < span(shape, strides):
        raise ValueError("a tensor that is larger than its storage")
    return np.lib.stride_tricks.as_strided(values, shape, [stride * values.itemsize for stride in strides]).copy()


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Number of elements from the first to the last one of a tensor; strides count elements.

    Raises ValueError for a shape and strides that no tensor can have.
    """
    if len(shape) != len(strides) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in (*shape, *strides)):
        raise ValueError("a tensor without shape and strides")
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
