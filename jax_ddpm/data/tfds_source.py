"""A data set of tensorflow_datasets, prepared if necessary. TensorFlow is never loaded into this process."""

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jax_ddpm.data.child import prepare_in_child
from jax_ddpm.data.decode import ImageFiles
from jax_ddpm.data.files import Source
from jax_ddpm.data.tfds_records import readable_format, records
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line, printable

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder, SplitInfo


def open_tfds(name: str, data_dir: str | None, manual_dir: str | None, log: Callable[[str], None]) -> Source:
    """Find a data set of tensorflow_datasets, or download and prepare it.

    Args:
        name: `name`, `name/config`, `name:version` or `name/config:version`.
        data_dir: the folder of prepared data; None: `TFDS_DATA_DIR`, else the default of tensorflow_datasets.
        manual_dir: a folder of archives downloaded by hand.
        log: called with a line of text before each long operation.

    Returns:
        Its `train` split (else its largest split) for training; its `test` split (else `validation`, else none) for
        validation.

    Raises:
        UserError: no such data set or folder, no images in it, or it cannot be read or prepared.
    """
    data_dir = _existing(data_dir, "--data-dir") or os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "")) or None
    manual_dir = _existing(manual_dir, "--manual-dir")
    builder = _builder(name, data_dir)
    channels = _channels(builder, name)
    if not _is_prepared(builder):
        log(f"{name} is not in {builder.data_dir}: preparing it there, once")
        failure = prepare_in_child(name, data_dir, manual_dir)
        builder = _builder(name, data_dir)
        if not _is_prepared(builder):  # if it is there in spite of a failure, another process has prepared it
            raise failure or UserError(f"{name}: the preparation has left no data set in {builder.data_dir}.")
    train, validation, notes = _splits(builder)
    classes = _classes(builder)
    return Source(
        _files(builder, train, channels, bool(classes)),
        _files(builder, validation, channels, bool(classes)) if validation is not None else None,
        [
            "tfds",
            builder.info.full_name,
            [_state(split, builder) for split in (train, validation) if split is not None],
        ],
        notes,
        classes,
    )


def _is_prepared(builder: "DatasetBuilder") -> bool:
    return os.path.isfile(os.path.join(builder.data_dir, "dataset_info.json"))


def _existing(path: str | None, flag: str) -> str | None:
    if path is None:
        return None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{flag} {printable(path)}: there is no such folder.\nCreate it, or omit {flag}.")
    return str(folder.resolve())


def _builder(name: str, data_dir: str | None) -> "DatasetBuilder":
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", name)[0]
    # A data set that is prepared here can be used even if its name is not known: it may come from a user's builder.
    prepared_here = Path(data_dir or tfds.core.constants.DATA_DIR) / base
    if base not in known and not (base.isidentifier() and prepared_here.is_dir()):
        raise _unknown(name, base, known)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        configs = list(tfds.builder_cls(base).builder_configs) if base in known else []
        config = re.split("[/:]", name)[1] if "/" in name else ""
        if config and config not in configs:
            raise UserError(
                f"{printable(name)}: {base} has no configuration {printable(config)!r}.\n"
                f"It has: {', '.join(configs[:20]) or 'none; give its name alone'}."
            ) from error
        cause = one_line(error, 500).rpartition('}": ')[-1]  # without the arguments, which the message begins with
        raise UserError(f"{printable(name)} cannot be opened: {cause}.") from error


def _unknown(name: str, base: str, known: list[str]) -> UserError:
    if os.path.isdir(os.path.expanduser(name)):
        return UserError(
            f"unknown data set {printable(name)!r}: for the images in this folder, say 'folder:{printable(name)}'."
        )
    names = [*known, "digits"]
    near = difflib.get_close_matches(base.lower().replace("-", "_"), names, n=4, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return UserError(
        f"unknown data set {printable(name)!r}.\n"
        f"{hint}Expected digits, folder:PATH, a .zip, .npz or .npy file, or an image data set of tensorflow_datasets."
    )


def _channels(builder: "DatasetBuilder", name: str) -> int | None:
    """Channels that the data set declares, 1 or 3; None if it declares none."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    image = features["image"] if isinstance(features, tfds.features.FeaturesDict) and "image" in features else None
    # np_dtype, because the property `dtype` of an Image loads TensorFlow
    if not isinstance(image, tfds.features.Image) or np.dtype(image.np_dtype) not in (np.uint8, np.uint16):
        held = ", ".join(features) if isinstance(features, tfds.features.FeaturesDict) else "something else"
        raise UserError(
            f"{printable(name)} is not an image data set: expected 8- or 16-bit images named 'image', found {held}.\n"
            "Give another --dataset, for example fashion_mnist or cifar10."
        )
    channels = image.shape[-1]
    return min(channels, 3) if channels else None


def _splits(builder: "DatasetBuilder") -> tuple["SplitInfo", "SplitInfo | None", tuple[str, ...]]:
    splits = {name: split for name, split in builder.info.splits.items() if split.num_examples}
    if not splits:
        raise UserError(
            f"{builder.info.full_name}: there is no image in {builder.data_dir}.\nDelete that folder and run again."
        )
    train = splits.get("train") or max(splits.values(), key=lambda split: split.num_examples)
    own = (splits.get(name) for name in ("test", "validation"))
    validation = next((split for split in own if split is not None and split.name != train.name), None)
    notes = () if train.name == "train" else (f"training on the split {train.name}: there is none named train",)
    return train, validation, notes


def _state(split: "SplitInfo", builder: "DatasetBuilder") -> list[tuple[str, int, int]]:
    """Name, size and modification time of each file of a split; if one changes, the images are decoded again."""
    readable_format(builder)
    try:
        stats = [(path.name, os.stat(path)) for path in split.filepaths]
    except OSError as error:
        raise UserError(
            f"{builder.info.full_name} is incomplete: {error.filename} is missing.\n"
            f"Delete {builder.data_dir} and run again to prepare it again."
        ) from error
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _classes(builder: "DatasetBuilder") -> tuple[str, ...] | None:
    """Names of the classes of the feature `label`; None if the data set has no such feature."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    label = features["label"] if "label" in list(features) else None
    return tuple(label.names) if isinstance(label, tfds.features.ClassLabel) and label.names else None


def _files(builder: "DatasetBuilder", split: "SplitInfo", channels: int | None, has_labels: bool) -> ImageFiles:
    label = f"{builder.info.full_name} {split.name}"
    return ImageFiles(label, split.num_examples, channels, lambda: records(builder, split, has_labels))
