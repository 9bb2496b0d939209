"""Decodes a source of images into the cache, or finds it there, and holds out validation images."""

import dataclasses
import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jax_ddpm.data import cache
from jax_ddpm.data.arrays import ArrayImages
from jax_ddpm.data.decode import reason
from jax_ddpm.data.files import MAX_NAMED, Source
from jax_ddpm.data.image_data import ImageData, fingerprint
from jax_ddpm.data.levels import FULL_RANGE, Range, RangeNeeded, joined, usable
from jax_ddpm.data.pixels import PREPROCESSING_VERSION
from jax_ddpm.data.shards import ShardedImages, in_memory_if_small
from jax_ddpm.data.split import split
from jax_ddpm.spec.errors import UserError, users_words
from jax_ddpm.spec.image_size import ImageSize, height_and_width

MAX_WITHOUT_CACHE = 2**31  # bytes; if the cache cannot be written, smaller data sets are decoded into memory


def image_data(
    name: str,
    source: Source,
    image_size: ImageSize,
    value_range: Range | None,
    fraction: float | None,
    cache_dir: Path,
    log: Callable[[str], None],
) -> ImageData:
    """The images of a source. Arguments as those of `jax_ddpm.data.load`.

    Raises:
        UserError: no image can be read, or the disk has too little space.
    """
    notes = list(source.notes)
    if fraction is not None and source.validation is not None:
        count, label = source.validation.count, source.validation.label
        notes.append(f"{count:,} images are not used ({label}), because a validation fraction is given")
        source = dataclasses.replace(source, validation=None)
    first = source.parts["train"]
    if isinstance(first, ArrayImages) and first.images.shape[1:3] != height_and_width(image_size):
        sizes = [f"{height}x{width}" for height, width in (first.images.shape[1:3], height_and_width(image_size))]
        notes.append(f"images of {sizes[0]} are resized to {sizes[1]} (--image-size)")
    if all(isinstance(part, ArrayImages) and part.is_ready(image_size) for part in source.parts.values()):
        store = None
        images = {
            n: ShardedImages([part.images], [part.count], part.images.shape[1:]) for n, part in source.parts.items()
        }
        labels = {n: part.labels for n, part in source.parts.items()}
    else:
        store, decoding_notes = _store(source, image_size, value_range, cache_dir, log)
        images = {part: store.images(part) for part in source.parts}
        labels = {part: store.labels(part) for part in source.parts}
        notes += decoding_notes
    train, train_labels, validation, validation_labels = images["train"], labels["train"], None, None
    if source.validation is not None:
        held_out, validation, validation_labels = "own", images["validation"], labels["validation"]
        notes.append(f"validation: {len(validation):,} images, the data set's own ({source.validation.label})")
    else:
        held_out = f"fraction {fraction}"
        rows, held_out_rows, note = split(len(train), fraction)
        notes.append(note)
        train, validation = train.of(rows), train.of(held_out_rows)
        if train_labels is not None:
            train_labels, validation_labels = train_labels[rows], train_labels[held_out_rows]
    arrays = in_memory_if_small(train), in_memory_if_small(validation)
    known = store.fingerprint(held_out, *arrays) if store else fingerprint(*arrays)
    notes = tuple(map(users_words, notes))
    return ImageData(name, *arrays, notes, train_labels, validation_labels, source.class_names, known)


def _store(
    source: Source, image_size: ImageSize, value_range: Range | None, cache_dir: Path, log: Callable[[str], None]
) -> tuple[cache.Store, list[str]]:
    """The decoded blocks of a source, and notes."""
    if source.key is None:
        store = cache.Store(None)
        _decode(store, source, image_size, value_range, log)
        return store, _notes(source, store, value_range)
    key = {"rule": PREPROCESSING_VERSION, "source": source.key, "size": image_size, "range": value_range}
    size = "x".join(map(str, height_and_width(image_size)[isinstance(image_size, int) :]))
    folder = cache.entry(cache_dir, f"{source.train.label}-{size}", key | {"parts": list(source.parts)})
    try:
        store, place = _in_folder(folder, source, image_size, value_range, log)
    except OSError as error:
        store, place = cache.Store(None), f"not cached: {cache_dir} cannot be written ({reason(error)})"
        if (needed := _bytes(source, image_size)) > MAX_WITHOUT_CACHE:
            raise UserError(
                f"{cache_dir} cannot hold the decoded images, {needed / 1e9:,.1f} GB or more ({reason(error)}).\n"
                "Free disk space, or give another --cache-dir. What is decoded already is kept there."
            ) from None
        shutil.rmtree(folder, ignore_errors=True)
        _decode(store, source, image_size, value_range, log)
    return store, [*_notes(source, store, value_range), place]


def _in_folder(
    folder: Path, source: Source, image_size: ImageSize, value_range: Range | None, log: Callable[[str], None]
) -> tuple[cache.Store, str]:
    store = cache.Store(folder)
    if store.complete:
        return store, f"read from the cache, {folder}"
    with cache.locked(folder, log):
        store = cache.Store(folder)  # again: another process may have written it
        if not store.complete:
            if store.is_damaged:
                log(f"{folder} is damaged: decoding again what cannot be read")
            elif done := sum(store.facts(part).covered for part in source.parts):
                log(f"{folder} holds {done:,} images that were decoded before: going on after them")
            left = 1 - sum(store.facts(part).covered for part in source.parts) / _count(source)
            if _bytes(source, image_size) * left > (free := shutil.disk_usage(folder).free):
                raise OSError(errno.ENOSPC, f"No space left on device: {free / 1e9:,.1f} GB are free")
            _decode(store, source, image_size, value_range, log)
    return store, f"cached in {folder}"


def _decode(
    store: cache.Store, source: Source, image_size: ImageSize, value_range: Range | None, log: Callable[[str], None]
) -> None:
    """Decode the blocks that are not in the store yet."""
    known = [facts.value_range for part in source.parts if (facts := store.facts(part)).value_range]
    value_range = value_range or (tuple(known[0]) if known else None)
    log(f"{source.train.label}: reading {_count(source):,} images")
    try:
        _decode_parts(store, source, image_size, value_range)
    except RangeNeeded:
        log("there are images with more than 8 bits per channel: looking for their smallest and largest value")
        ranges = [found for part in source.parts.values() if (found := part.value_range())]
        _decode_parts(store, source, image_size, usable(joined(ranges)) if ranges else FULL_RANGE)
    store.finish()


def _decode_parts(store: cache.Store, source: Source, image_size: ImageSize, value_range: Range | None) -> None:
    for name, part in source.parts.items():
        for block in part.blocks(image_size, value_range, len(store.blocks[name])):
            store.add(name, block)
            del block  # before the next one is decoded: a block takes 128 MB
        if name == "train" and not store.count(name):
            raise UserError(
                f"{part.label}: none of its {part.count} images can be read, e.g. {store.facts(name).examples[0]}.\n"
                "Expected undamaged image files, such as png or jpeg: replace them, or give another --dataset."
            )


def _notes(source: Source, store: cache.Store, value_range: Range | None) -> list[str]:
    """What happened to the images while they were decoded."""
    notes, deep, several_frames, limits = [], 0, 0, None
    for name in source.parts:
        facts = store.facts(name)
        if facts.skipped:
            more = f" and {facts.skipped - MAX_NAMED} more" if facts.skipped > MAX_NAMED else ""
            notes.append(f"{facts.skipped} of {facts.covered} images skipped: {', '.join(facts.examples)}{more}")
        deep, several_frames = deep + facts.deep, several_frames + facts.several_frames
        limits = limits or facts.value_range
    if several_frames:
        notes.append(f"images with several frames or pages: {several_frames}; only the first of each is used")
    if deep:
        whose = "as --value-range says" if value_range else "the range of the data set; --value-range overrules it"
        notes.append(
            f"images with more than 8 bits per channel: {deep}; "
            f"{limits[0]:g} becomes black and {limits[1]:g} white ({whose})"
        )
    elif value_range and not isinstance(source.train, ArrayImages):
        notes.append("--value-range has no effect: no image has more than 8 bits per channel")
    return notes


def _count(source: Source) -> int:
    return sum(part.count for part in source.parts.values())


def _bytes(source: Source, image_size: ImageSize) -> int:
    """Smallest size of the decoded images."""
    return _count(source) * int(np.prod(height_and_width(image_size)))
