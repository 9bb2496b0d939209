"""Decoded images on disk, so that a data set is decoded once and need not fit in memory.

An entry is a folder. `train-00000.npy`, `validation-00000.npy` and so on hold a block of images each, and files such as
`train-00000.labels.npy` their classes. `index.json` describes the blocks that are complete, and says whether these are
all. Each file is written under a temporary name and renamed, `index.json` after the block that it adds. So a decoding
that is interrupted goes on after its last complete block.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from jax_ddpm.data.files import Block, Facts
from jax_ddpm.data.image_data import fingerprint
from jax_ddpm.data.shards import ShardedImages
from jax_ddpm.spec.files import atomic_path, write_text

INDEX = "index.json"


def entry(cache_dir: Path, label: str, key: object) -> Path:
    """The folder of an entry: the one with this key that is there, or a new one.

    Args:
        cache_dir: folder of the cache.
        label: any text; the name of a new entry begins with it.
        key: everything that the images depend on, as a value that JSON can hold.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    there = sorted(cache_dir.glob(f"*-{digest}"))
    return there[0] if there else cache_dir / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', label)[-40:].strip('-.')}-{digest}"


@contextmanager
def locked(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Create the folder of an entry, and let no other process write to it. Waits if another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")  # the operating system releases it, however the process ends
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"another process is decoding these images into {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Store:
    """Decoded blocks of a data set, in the folder of an entry, or in memory if `folder` is None."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.blocks: dict[str, list[dict]] = {"train": [], "validation": []}
        """The complete blocks of each part: `shape`, `labels` (whether there are any) and `facts`."""
        self.complete = False
        """Whether these are all blocks."""
        self.fingerprints: dict[str, str] = {}
        """Fingerprints that were computed, by the way in which images are held out."""
        self.is_damaged = False
        """Whether the folder holds more than could be read."""
        self.arrays: dict[str, np.ndarray] = {}
        """Without a folder: what would be in its files."""
        if folder is not None:
            self._read_index()

    def _read_index(self) -> None:
        """Take over the blocks of an earlier process, up to the first one that is damaged."""
        self.is_damaged = (self.folder / INDEX).exists()
        try:
            index = json.loads((self.folder / INDEX).read_text("utf-8"))
            for part, blocks in self.blocks.items():
                for number, block in enumerate(index["blocks"][part]):
                    Facts(**block["facts"])
                    if not self._is_whole(part, number, block):
                        return
                    blocks.append(block)
            self.fingerprints = dict(index["fingerprints"])
            self.complete = index["complete"] is True
            self.is_damaged = False
        except Exception:  # a damaged index or file: what was not read is decoded again
            return

    def _is_whole(self, part: str, number: int, block: dict) -> bool:
        wanted = [("", np.uint8, block["shape"])]
        wanted += [(".labels", np.int32, block["shape"][:1])] if block["labels"] else []
        for kind, dtype, shape in wanted:
            path = self._path(part, number, kind)
            if not shape[0]:
                continue
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype != dtype or list(array.shape) != shape or not array.flags.c_contiguous:
                return False
            if path.stat().st_size != array.offset + array.nbytes:
                return False
        return True

    def _path(self, part: str, number: int, kind: str = "") -> Path:
        return self.folder / f"{part}-{number:05}{kind}.npy"

    def add(self, part: str, block: Block) -> None:
        """Store the next block of a part.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        number = len(self.blocks[part])
        for kind, array in (("", block.images), (".labels", block.labels)):
            if array is not None and self.folder is None:
                self.arrays[f"{part}-{number}{kind}"] = array
            elif array is not None:
                with atomic_path(self._path(part, number, kind)) as draft, open(draft, "wb") as file:
                    np.save(file, array, allow_pickle=False)
        facts = dataclasses.asdict(block.facts)
        shape = list(map(int, block.images.shape))
        self.blocks[part].append({"shape": shape, "labels": block.labels is not None, "facts": facts})
        self.write_index()

    def finish(self) -> None:
        """Say that these are all blocks."""
        self.complete = True
        self.write_index()

    def write_index(self) -> None:
        if self.folder is not None:
            index = {"blocks": self.blocks, "complete": self.complete, "fingerprints": self.fingerprints}
            write_text(self.folder / INDEX, json.dumps(index))

    def facts(self, part: str) -> Facts:
        """The facts of all blocks of a part."""
        return sum((Facts(**block["facts"]) for block in self.blocks[part]), Facts())

    def count(self, part: str) -> int:
        """Number of decoded images of a part."""
        return sum(block["shape"][0] for block in self.blocks[part])

    def images(self, part: str) -> ShardedImages:
        """The images of a part. Where some image of the data set is in colour, all have 3 channels."""
        blocks = [(number, block["shape"]) for number, block in enumerate(self.blocks[part]) if block["shape"][0]]
        shapes = [block["shape"] for blocks in self.blocks.values() for block in blocks]
        image_shape = (*shapes[0][1:3], max(shape[3] for shape in shapes))
        shards = [
            self.arrays[f"{part}-{number}"] if self.folder is None else self._path(part, number) for number, _ in blocks
        ]
        return ShardedImages(shards, [shape[0] for _, shape in blocks], image_shape)

    def labels(self, part: str) -> np.ndarray | None:
        """The classes of a part's images, int32 (N,); None unless all blocks have them."""
        blocks = [(number, block) for number, block in enumerate(self.blocks[part]) if block["shape"][0]]
        if not blocks or not all(block["labels"] for _, block in blocks):
            return None
        if self.folder is None:
            return np.concatenate([self.arrays[f"{part}-{number}.labels"] for number, _ in blocks])
        return np.concatenate([np.load(self._path(part, number, ".labels")) for number, _ in blocks])

    def fingerprint(self, held_out: str, train: ShardedImages, validation: ShardedImages) -> str:
        """`fingerprint(train, validation)`, computed once per entry. held_out: how the images were held out."""
        if held_out not in self.fingerprints:
            self.fingerprints[held_out] = fingerprint(train, validation)
            with suppress(OSError):  # it will be computed again
                self.write_index()
        return self.fingerprints[held_out]
