"""Read the arrays of a file, whatever its name ends in. No code in the file is executed."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.file_content import Dictionary, FileContent, search
from jax_ddpm.spec.stored_array import Array, StoredArray, from_bits
from jax_ddpm.spec.text import one_line
from jax_ddpm.spec.torch_file import read_torch
from jax_ddpm.spec.types import StateDict

METADATA_KEY = "jax_ddpm"
EXPECTED = "a run folder, one of its checkpoints, a diffusers folder, or a file of safetensors or PyTorch"
GIT_LFS = b"version https://git-lfs"
STARTS_OF_OTHER_FILES = {  # of files that are often taken for a model
    GIT_LFS: "a pointer of Git LFS, not the file itself: run git lfs pull",
    b"<": "a web page (HTML or XML), as a failed download leaves: download the file again",
    b"{": "JSON: expected the weights themselves, or the folder",
    b"\x89HDF": "an HDF5 file, as Keras writes: expected a file of safetensors or PyTorch",
    b"GGUF": "a GGUF file: expected a file of safetensors or PyTorch",
    **dict.fromkeys(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!"), "compressed: unpack it first"
    ),
}
PICKLES = (b"\x80", b"(", b"}", b"]", b"c")  # the first byte of pickles
SAFETENSORS_TYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"},
}


@dataclass(frozen=True)
class ModelFile:
    """A file that was opened."""

    path: Path
    content: FileContent
    metadata: str | None
    """Our metadata (JSON), if the file has it."""
    version: str | None = None
    """The text under the key "version", in which trainers name the release of their package."""

    @property
    def own_arrays(self) -> dict[str, Array]:
        """For a file with our metadata, the arrays of its state dict."""
        return next((group.arrays for group in self.content.dictionaries if len(group.keys) <= 1), {})


def open_model(path: Path) -> ModelFile:
    """The arrays of a file, not read yet. Raises UserError that says what the file is if it is not a model."""
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist: expected {EXPECTED}.")
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    kind = kind_of(head, path)
    if kind == "index":
        return open_shards(path)
    return open_safetensors(path) if kind == "safetensors" else open_torch(path)


def kind_of(head: bytes, path: Path) -> str:
    """ "safetensors", "torch" or "index" (of a model in several files), from the first bytes of a file.

    Raises UserError for others.
    """
    if not head:
        raise UserError(f"{path} is empty. Was it copied or downloaded completely?")
    if head[8:9] == b"{":
        return "safetensors"
    if path.name.endswith(".index.json"):
        return "index"
    if head.startswith(b"PK") or (head.startswith(PICKLES) and head[257:262] != b"ustar"):
        return "torch"
    if head[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive: unpack it first.")
    for start, what in STARTS_OF_OTHER_FILES.items():
        if head.lstrip().startswith(start):
            raise UserError(f"{path} is {what}.")
    raise UserError(f"{path} is not a model file: expected {EXPECTED}.")


def open_safetensors(path: Path) -> ModelFile:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:  # checks the whole header
            metadata = file.metadata() or {}
        with open(path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        arrays = {
            name: StoredArray(
                tuple(entry["shape"]),
                functools.partial(read_tensor, path, 8 + header_size, entry["data_offsets"], name, entry),
            )
            for name, entry in header.items()
        }
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {one_line(error)}.") from None
    content = FileContent([Dictionary((), arrays)] if arrays else [], [])
    return ModelFile(path, content, metadata.get(METADATA_KEY))


def read_tensor(path: Path, start: int, offsets: list[int], name: str, entry: dict) -> np.ndarray:
    """One tensor of a .safetensors file."""
    if entry["dtype"] not in SAFETENSORS_TYPES:
        raise UserError(f"{path}: {name} has the dtype {entry['dtype']}, which is not read: convert it to F32.")
    data = bytearray(offsets[1] - offsets[0])  # arrays of it can be written to, as PyTorch expects
    with open(path, "rb") as file:
        file.seek(start + offsets[0])
        file.readinto(data)
    return from_bits(data, SAFETENSORS_TYPES[entry["dtype"]]).reshape(entry["shape"])


def open_torch(path: Path) -> ModelFile:
    try:
        tree = read_torch(path)
        content = search(tree)
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything
        why = one_line(error, 80)
        raise UserError(
            f"{path} cannot be read as a PyTorch checkpoint: it is damaged or not a checkpoint ({why})."
        ) from None
    metadata = tree.get(METADATA_KEY) if isinstance(tree, dict) else None
    version = tree.get("version") if isinstance(tree, dict) else None
    return ModelFile(
        path,
        content,
        metadata if isinstance(metadata, str) else None,
        version if isinstance(version, str) else None,
    )


def open_shards(index: Path) -> ModelFile:
    """A model in several files, from its index (JSON), whose `weight_map` names the file of each array."""
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        names_are_plain = all(Path(name).name == name for name in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is not the index of a model's files: {one_line(error)}.") from None
    if not names_are_plain:
        raise UserError(f"{index} names files of other folders: expected files beside it.")
    arrays: dict[str, Array] = {}
    for name in files:
        for group in open_model(index.with_name(name)).content.dictionaries:
            arrays |= group.arrays
    return ModelFile(index, FileContent([Dictionary((), arrays)] if arrays else [], []), None)


def read_arrays(arrays: Mapping[str, Array], path: Path) -> StateDict:
    """The values of arrays of the file `path`. Raises UserError if the file is damaged."""
    try:
        return {name: array if isinstance(array, np.ndarray) else array.read() for name, array in arrays.items()}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged: an array cannot be read ({one_line(error, 80)}).") from None
