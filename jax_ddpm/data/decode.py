"""Decodes image files on all cores."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from jax_ddpm.data.files import Block, Facts, Item
from jax_ddpm.data.formats import quiet_pillow
from jax_ddpm.data.levels import Range, RangeNeeded, joined, range_of
from jax_ddpm.data.pixels import open_image, open_levels, resize_and_crop
from jax_ddpm.spec.image_size import ImageSize, height_and_width
from jax_ddpm.spec.text import one_line, printable

BLOCK_BYTES = 2**27  # decoded size of a block, if its images are in colour
ITEMS_PER_TASK = 8
TASKS_AHEAD = 4  # per thread


class Result(NamedTuple):
    """A decoded image, or why it could not be decoded."""

    image: np.ndarray | None = None
    error: str = ""
    is_deep: bool = False
    several_frames: bool = False


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images in a fixed order: `read` yields `count` of them."""

    label: str
    count: int
    channels: int | None
    """1 or 3; None: a block has 1 channel if all its images are gray, else 3."""
    read: Callable[[], Iterable[Item]]

    def blocks(self, image_size: ImageSize, value_range: Range | None, done: int) -> Iterator[Block]:
        """The decoded images, in order, without the first `done` blocks. Images that cannot be read are skipped.

        Raises:
            RangeNeeded: an image has more than 8 bits per channel, and `value_range` is None.
        """
        length, items = images_per_block(image_size), iter(self.read())
        start = done * length
        deque(islice(items, start), maxlen=0)
        decode = partial(_decode, image_size=image_size, channels=self.channels, value_range=value_range)
        bar = tqdm(total=self.count, initial=start, desc=f"reading {self.label}", unit=" images", disable=None)
        with quiet_pillow(), bar, closing(in_order(decode, items)) as results:
            while start < self.count:
                yield _block(islice(results, length), min(length, self.count - start), image_size, value_range, bar)
                start += length

    def value_range(self) -> Range | None:
        """Smallest and largest value of the images with more than 8 bits per channel; None if there are none."""
        bar = tqdm(total=self.count, desc=f"range of {self.label}", unit=" images", disable=None)
        ranges = []
        with quiet_pillow(), bar, closing(in_order(_range, self.read())) as found:
            for one in found:
                bar.update()
                ranges = [joined([*ranges, one])] if one else ranges
        return ranges[0] if ranges else None


def images_per_block(image_size: ImageSize, channels: int = 3) -> int:
    """Number of images of a source in each block, those that will be skipped included."""
    return max(1, BLOCK_BYTES // (channels * int(np.prod(height_and_width(image_size)))))


def in_order(function: Callable, items: Iterable) -> Iterator:
    """`map`, computed by as many threads as there are cores, a few items ahead. Close it to stop the threads."""
    items = iter(items)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    tasks: deque[Future] = deque()
    stopped = threading.Event()
    try:
        while True:
            while len(tasks) < TASKS_AHEAD * threads and (chunk := list(islice(items, ITEMS_PER_TASK))):
                tasks.append(pool.submit(lambda chunk: [function(x) for x in chunk if not stopped.is_set()], chunk))
            if not tasks:
                return
            yield from tasks.popleft().result()
    finally:
        stopped.set()  # a thread ends after the item that it has begun
        pool.shutdown(wait=False, cancel_futures=True)


def reason(error: Exception) -> str:
    """Why an image could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error, 100)


def _decode(item: Item, image_size: ImageSize, channels: int | None, value_range: Range | None) -> tuple[Item, Result]:
    try:
        image, is_deep, several_frames = open_image(item.file, channels, value_range)
        return item, Result(resize_and_crop(image, image_size), "", is_deep, several_frames)
    except (MemoryError, RangeNeeded):
        raise
    except Exception as error:  # Pillow raises nearly any exception for a damaged file
        return item, Result(error=f"{printable(item.name)} ({reason(error)})")


def _range(item: Item) -> Range | None:
    try:
        levels = open_levels(item.file)
    except MemoryError:
        raise
    except Exception:  # the image will be skipped
        return None
    return None if levels is None else range_of(levels)


def _block(
    results: Iterable[tuple[Item, Result]], length: int, image_size: ImageSize, value_range: Range | None, bar: tqdm
) -> Block:
    images = np.empty((length, *height_and_width(image_size), 1), np.uint8)
    labels, facts, count = [], Facts(), 0
    for item, result in results:
        bar.update()
        facts.covered += 1
        if result.image is None:
            facts += Facts(skipped=1, examples=[result.error])
            continue
        facts.deep += result.is_deep
        facts.several_frames += result.several_frames
        if result.image.shape[-1] > images.shape[-1]:
            gray, images = images, np.empty((*images.shape[:-1], 3), np.uint8)
            images[:count] = gray[:count]
        images[count] = result.image
        labels.append(item.label)
        count += 1
    if facts.deep:
        facts.value_range = list(value_range)
    has_labels = count and None not in labels
    return Block(images[:count], np.array(labels, np.int32) if has_labels else None, facts)
