"""Read files of `torch.save` and plain pickles, without PyTorch and without running anything that is in them."""

import functools
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from jax_ddpm.spec.errors import UserError
from jax_ddpm.spec.stored_array import number_type
from jax_ddpm.spec.unpickle import Name, Storage, Unpickler

MAGIC = 0x1950A86A20F9469CFC6C  # the first object in files of PyTorch before version 1.6
MAX_SWELLING = 20  # an entry that takes more than this times its compressed size is not read


def read_torch(path: Path) -> Any:
    """The content of a file of `torch.save`, or of a plain pickle, as `unpickle.Unpickler` gives it.

    Raises UserError for TorchScript and for other archives, and any other exception for a damaged file.
    """
    return read_zip(path) if zipfile.is_zipfile(path) else read_pickles(lambda: open(path, "rb"))


def read_zip(path: Path | BinaryIO) -> Any:
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    root = next((name.removesuffix("data.pkl") for name in entries if f"/{name}".endswith("/data.pkl")), None)
    if any("/code/" in f"/{name}" or f"/{name}".endswith("/constants.pkl") for name in entries):
        raise UserError(
            f"{path} is a TorchScript archive, which contains code, and is not read. Save its weights with PyTorch:\n"
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
        )
    if root is None:
        raise UserError(f"{path} is a zip archive without a data.pkl: expected a file of torch.save.")

    @functools.lru_cache(maxsize=1)  # tensors that share a storage mostly follow each other
    def read(name: str) -> bytes:
        entry = entries[name]
        if entry.file_size > MAX_SWELLING * entry.compress_size + 2**20:
            raise ValueError(f"{name} would swell to {entry.file_size} bytes")
        return archive.read(entry)

    big_endian = root + "byteorder" in entries and read(root + "byteorder") == b"big"

    def load_storage(pid) -> Storage:
        kind, key, num_elements = describe_storage(pid)
        return Storage(kind, num_elements, functools.partial(read, f"{root}data/{key}"), big_endian)

    return Unpickler(io.BytesIO(read(root + "data.pkl")), load_storage, read_bytes).load()


def describe_storage(pid) -> tuple[str, str, int]:
    """Kind, key and number of elements in the persistent id of a storage."""
    _, kind, key, _, num_elements, *_ = pid
    kind = kind.path.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, Name) else "unknown"
    if not isinstance(key, str) or type(num_elements) is not int or num_elements < 0:
        raise ValueError("a storage without key or size")
    return kind, key, num_elements


def read_pickles(open_file: Callable[[], BinaryIO]) -> Any:
    """The content of a plain pickle, or of a file of PyTorch before version 1.6.

    The latter has a pickle of the magic number, of a version, of the system and of the content, then one of the list of
    the storages' keys, and then each storage: its number of elements (int64) and its bytes.
    """
    storages: dict[str, tuple[int, int]] = {}  # by key: position in the file, and bytes
    element_sizes: dict[str, int] = {}

    @functools.lru_cache(maxsize=1)
    def read_storage(key: str) -> bytes:
        position, size = storages[key]
        with open_file() as file:
            file.seek(position)
            data = file.read(size)
        if len(data) != size:
            raise ValueError("the file ends within a storage")
        return data

    def load_storage(pid) -> Storage:
        kind, key, num_elements = describe_storage(pid)
        dtype = number_type(kind)
        element_sizes[key] = 0 if dtype is None else dtype.itemsize
        return Storage(kind, num_elements, functools.partial(read_storage, key))

    with open_file() as file:
        bounded = Bounded(file)
        content = Unpickler(bounded, None, read_bytes).load()
        if content != MAGIC:
            return content
        for _ in ("version", "system"):
            Unpickler(bounded).load()
        content = Unpickler(bounded, load_storage, read_bytes).load()
        for key in Unpickler(bounded).load():
            size = int.from_bytes(bounded.read(8), "little") * element_sizes[key]
            storages[key] = (file.tell(), size)
            file.seek(size, os.SEEK_CUR)
        if file.tell() > bounded.size:
            raise ValueError("the file ends within a storage")
    return content


def read_bytes(data: bytes) -> Any:
    """The content of a file of PyTorch that is within a pickle, as `pickle.dump` writes tensors."""
    is_zip = data[:2] == b"PK"
    return read_zip(io.BytesIO(data)) if is_zip else read_pickles(lambda: io.BytesIO(data))


class Bounded:
    """An open file that never makes room for more bytes than it has left, whatever is asked for."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, count: int) -> bytes:
        return self.file.read(count if count < 2**16 else max(0, min(count, self.size - self.file.tell())))

    def readline(self) -> bytes:
        return self.file.readline()

    def readinto(self, buffer) -> int:
        return self.file.readinto(buffer)
