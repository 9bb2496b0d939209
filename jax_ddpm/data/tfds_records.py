"""Reads the encoded images of a prepared data set of tensorflow_datasets, without TensorFlow."""

import importlib.util
import io
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jax_ddpm.data.files import Item
from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder, SplitInfo

RECORDS_PER_READ = 256


def readable_format(builder: "DatasetBuilder") -> str:
    """The format of the prepared files, `array_record` or `tfrecord`. Also sets this format on the builder.

    Raises:
        UserError: the data set is prepared in another format.
    """
    available = {file_format.value for file_format in builder.info.available_file_formats()}
    readable = ["tfrecord"]
    if importlib.util.find_spec("array_record"):  # not available on Windows
        readable.insert(0, "array_record")
    for name in readable:
        if name in available:
            builder.info.set_file_format(name, override=True, override_if_initialized=True)
            return name
    found = ", ".join(sorted(available)) or "an unknown format"
    raise UserError(
        f"{builder.info.full_name} is prepared in {builder.data_dir} as {found}.\n"
        f"Expected {' or '.join(readable)}: give another --data-dir, and the data set will be prepared there."
    )


def records(builder: "DatasetBuilder", split: "SplitInfo", has_labels: bool) -> Iterator[Item]:
    """The encoded image of each example of a split, in the order of its files, with its class if it `has_labels`.

    Raises:
        UserError: a file is damaged.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    raw = _array_records(builder, split) if readable_format(builder) == "array_record" else _tfrecords(split)
    count = 0
    try:
        for example in raw:
            features = tf_example_pb2.Example.FromString(example).features.feature
            values, labels = features["image"].bytes_list.value, features["label"].int64_list.value
            label = int(labels[0]) if has_labels and labels else None
            yield Item(f"{split.name} image {count}", io.BytesIO(values[0] if values else b""), label)
            count += 1
        if count != split.num_examples:
            raise EOFError(f"{count} of {split.num_examples} examples found")
    except Exception as error:
        raise UserError(
            f"the {split.name} split of {builder.info.full_name} is damaged: {one_line(error)}.\n"
            f"Delete {builder.data_dir} and run again to prepare it again."
        ) from error


def _array_records(builder: "DatasetBuilder", split: "SplitInfo") -> Iterator[bytes]:
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split.name, deserialize_method=raw)
    for start in range(0, len(source), RECORDS_PER_READ):
        yield from source.__getitems__(range(start, min(start + RECORDS_PER_READ, len(source))))


def _tfrecords(split: "SplitInfo") -> Iterator[bytes]:
    """Records of TFRecord files: length (uint64), its checksum (4 bytes), the record, its checksum (4 bytes)."""
    for path in split.filepaths:
        with open(path, "rb") as file:
            bytes_left = os.stat(path).st_size
            while bytes_left:
                (length,) = struct.unpack("<Q4x", file.read(12))
                bytes_left -= 12 + length + 4
                if bytes_left < 0:
                    raise EOFError(f"{path} is truncated")
                yield file.read(length)
                file.seek(4, os.SEEK_CUR)
