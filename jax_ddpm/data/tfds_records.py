"""The encoded images in prepared data of tensorflow_datasets, read without TensorFlow."""

import importlib.util
import io
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.text import one_line

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder, SplitInfo

READ_AHEAD = 256  # records


def readable_format(builder: "DatasetBuilder") -> str:
    """`array_record` or `tfrecord`, and the names of the builder's files set to it.

    Raises:
        UserError: the data are there, but in neither.
    """
    available = {file_format.value for file_format in builder.info.available_file_formats()}
    readable = ["tfrecord"]
    if importlib.util.find_spec("array_record"):  # there is none for Windows
        readable.insert(0, "array_record")
    for name in readable:
        if name in available:
            builder.info.set_file_format(name, override=True, override_if_initialized=True)
            return name
    found = ", ".join(sorted(available)) or "nothing known"
    raise UserError(
        f"{builder.info.full_name} is prepared in {builder.data_dir} as {found}.\n"
        f"This system reads {' and '.join(readable)}: give another --data-dir, and it is prepared there."
    )


def records(builder: "DatasetBuilder", split: "SplitInfo") -> Iterator[tuple[str, io.BytesIO]]:
    """Name and encoded image of each example of a split, in the order of its files.

    Raises:
        UserError: a file is damaged.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    raw = _array_records(builder, split) if readable_format(builder) == "array_record" else _tfrecords(split)
    count = 0
    try:
        for example in raw:
            values = tf_example_pb2.Example.FromString(example).features.feature["image"].bytes_list.value
            yield f"{split.name} image {count}", io.BytesIO(values[0] if values else b"")
            count += 1
        if count != split.num_examples:
            raise EOFError(f"{count} of {split.num_examples} examples in it")
    except Exception as error:
        raise UserError(
            f"the {split.name} split of {builder.info.full_name} is damaged: {one_line(error)}.\n"
            f"Delete {builder.data_dir} and run again to prepare it anew."
        ) from error


def _array_records(builder: "DatasetBuilder", split: "SplitInfo") -> Iterator[bytes]:
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split.name, deserialize_method=raw)
    for start in range(0, len(source), READ_AHEAD):
        yield from source.__getitems__(range(start, min(start + READ_AHEAD, len(source))))


def _tfrecords(split: "SplitInfo") -> Iterator[bytes]:
    """The TFRecord format: length (uint64), its checksum (4 bytes), the record, its checksum (4 bytes)."""
    for path in split.filepaths:
        with open(path, "rb") as file:
            left = os.stat(path).st_size
            while left:
                (length,) = struct.unpack("<Q4x", file.read(12))
                left -= 12 + length + 4
                if left < 0:
                    raise EOFError(f"{path} is cut short")
                yield file.read(length)
                file.seek(4, os.SEEK_CUR)
