"""`ShardedImages`: images in several arrays or files, used like one array that need not fit in memory."""

import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

MAX_IN_MEMORY = 2**28  # bytes; smaller data sets are ordinary arrays
MAX_OPEN_FILES = 128
NUM_READERS = 16  # threads
MIN_IMAGES_FOR_THREADS = 32


class ShardedImages:
    """uint8 images (N, H, W, C), like a read-only array. Indexing reads only the images that it gives.

    Supports `len`, `shape`, `dtype`, `nbytes`, `ndim`, iteration, `images[i]`, `images[a:b]` and
    `images[array of integers]`. `np.asarray(images)` reads all of them.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, shards: Sequence[np.ndarray | Path], counts: Sequence[int], image_shape, rows=None):
        """The images of some arrays and files, one after the other.

        Args:
            shards: arrays or .npy files, uint8 (n, H, W, C) or (n, H, W, 1), none of them empty.
            counts: n of each shard.
            image_shape: (H, W, C).
            rows: the images to use, an increasing array of integers; all if None.
        """
        self.shards, self.image_shape = shards, tuple(map(int, image_shape))
        self.ends = np.cumsum(counts, dtype=np.int64)
        self.rows = rows
        self._open = functools.lru_cache(MAX_OPEN_FILES)(ShardFile)

    def of(self, rows: np.ndarray) -> "ShardedImages":
        """Only some of these images, without reading them. rows: an increasing array of integers."""
        rows = rows if self.rows is None else self.rows[rows]
        return ShardedImages(self.shards, np.diff(self.ends, prepend=0), self.image_shape, rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self), *self.image_shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        if self.rows is not None:
            return len(self.rows)
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice):
            return self._gather(np.arange(*key.indices(len(self))))
        indices = np.asarray(key, np.int64) if isinstance(key, list) and not key else np.asarray(key)
        if indices.dtype == bool and indices.shape == (len(self),):
            return self._gather(np.flatnonzero(indices))
        if indices.dtype.kind not in "iu" or isinstance(key, tuple):
            raise IndexError("expected an integer, a slice or an array of integers; np.asarray(images) reads them all")
        flat = indices.reshape(-1)
        if flat.size and not (-len(self) <= flat.min() and flat.max() < len(self)):
            raise IndexError(f"index out of range: there are {len(self)} images")
        return self._gather(np.where(flat < 0, flat + len(self), flat)).reshape(*indices.shape, *self.image_shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("the images have to be read: copy=False is not possible")
        return self[:].astype(dtype or np.uint8, copy=False)

    def _gather(self, indices: np.ndarray) -> np.ndarray:
        """The images at these indices, 0 or more, read shard by shard."""
        rows = indices if self.rows is None else self.rows[indices]
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        numbers = np.searchsorted(self.ends, rows, side="right")
        order = np.argsort(numbers, kind="stable")
        places = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(rows) else []

        def read(place: np.ndarray) -> None:
            number = int(numbers[place[0]])
            first = self.ends[number - 1] if number else 0
            shard, here = self.shards[number], rows[place] - first
            images[place] = self._open(shard).read(here) if isinstance(shard, Path) else shard[here]

        list(readers().map(read, places) if len(rows) >= MIN_IMAGES_FOR_THREADS else map(read, places))
        return images


@functools.cache
def readers() -> ThreadPoolExecutor:
    """Threads that read from several shards at the same time. A disk answers many requests faster than one by one."""
    return ThreadPoolExecutor(NUM_READERS, thread_name_prefix="images")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=readers.cache_clear)  # a forked process has none of these threads


class ShardFile:
    """An open .npy file of uint8 images.

    It is read, not mapped: systems map up to 2 MB around each image, so that a process in which images are read in
    random order would seem to hold the whole data set in memory.
    """

    def __init__(self, path: Path):
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.lock = threading.Lock()  # the file has a position
        header = np.load(path, mmap_mode="r", allow_pickle=False)
        self.offset, self.image_shape = header.offset, header.shape[1:]

    def __del__(self):
        if hasattr(self, "file"):
            self.file.close()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows, uint8 (n, H, W, C). Raises OSError if the file was cut."""
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        size = images[:1].nbytes
        with self.lock:
            for image, row in zip(images, rows.tolist(), strict=True):
                self.file.seek(self.offset + row * size)
                if self.file.readinto(image) != size:
                    raise OSError(f"{self.file.name} is shorter than it was")
        return images


def in_memory_if_small(images: ShardedImages) -> np.ndarray | ShardedImages:
    """A read-only array of the images if they have at most MAX_IN_MEMORY bytes, else the same object."""
    if images.nbytes > MAX_IN_MEMORY:
        return images
    array = images[:]
    array.flags.writeable = False
    return array
