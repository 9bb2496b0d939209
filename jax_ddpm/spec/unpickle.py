"""Read pickles without running anything that is in them.

A pickle may name any function of any package and have it called. The reader here looks up no name at all: a few kinds
of plain data (dictionaries, numbers, NumPy arrays, tensors) are rebuilt by functions of this file, and every other
object becomes an `Instance`, a record of what the pickle says of it.
"""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jax_ddpm.spec.stored_array import StoredArray, from_bits, number_type, span, strided

SCALARS = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Name:
    """A function or class that a pickle names, such as "collections.OrderedDict". It is not looked up."""

    path: str


@dataclass
class Instance:
    """An object of a class that is not looked up."""

    path: str
    """Module and name of the class, or of the function that would have made the object."""
    arguments: tuple
    state: Any = None
    """What the object would have been filled with: usually a dict of its attributes."""
    items: dict = field(default_factory=dict)
    """Entries, if the class is a kind of dictionary."""
    elements: list = field(default_factory=list)
    """Elements, if the class is a kind of list."""


@dataclass(frozen=True)
class Storage:
    """The memory of one or several tensors."""

    kind: str
    """Type of its elements, such as "Float" or "BFloat16"; "Untyped" for bytes."""
    num_elements: int
    read: Callable[[], bytes]
    big_endian: bool = False


class NumpyType:
    """A dtype of NumPy; `dtype` is None for kinds other than numbers."""

    def __init__(self, code: str, *_):
        self.dtype = np.dtype(code) if isinstance(code, str) and code in NUMPY_CODES else None

    def build(self, state: tuple) -> None:
        if self.dtype is not None and state[1] in (">", "<"):
            self.dtype = self.dtype.newbyteorder(state[1])


NUMPY_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class NumpyArray(StoredArray):
    """A NumPy array in a pickle, which first creates it and then fills it."""

    def __init__(self, *_):
        super().__init__((), lambda: np.zeros(()))

    def build(self, state: tuple) -> None:
        """state: version, shape, dtype, whether the order is Fortran's, and the bytes."""
        _, shape, kind, is_fortran, data = state
        self.fill(data, kind, shape, "F" if is_fortran else "C")

    def fill(self, data: bytes, kind: NumpyType, shape: tuple[int, ...], order: str) -> "NumpyArray":
        if kind.dtype is not None:
            data, shape = as_bytes(data), tuple(map(int, shape))
            if min(shape, default=0) < 0 or math.prod(shape) * kind.dtype.itemsize != len(data):
                raise ValueError("a NumPy array of another size than its shape")
            self.shape = shape
            self.read = lambda: np.frombuffer(data, kind.dtype).reshape(shape, order=order).copy()
        return self


def as_bytes(data) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else data


class Unpickler(pickle._Unpickler):
    """Reads one object from an open file.

    The object consists of dicts, lists, tuples, strings, bytes, numbers, `StoredArray`, `Storage`, `Name` and
    `Instance`. Sets become lists.

    Python's own implementation in C is not used: it can be made to run out of memory by a few bytes.
    """

    dispatch = dict(pickle._Unpickler.dispatch)  # noqa: RUF012 the attribute that the base class reads

    def __init__(
        self,
        file,
        load_storage: Callable[[Any], Storage] | None = None,
        load_bytes: Callable[[bytes], Any] | None = None,
    ):
        """load_storage: from a persistent id. load_bytes: reads a file of PyTorch that is within the pickle."""
        super().__init__(file, encoding="latin1")
        self.load_storage, self.load_bytes = load_storage, load_bytes

    def find_class(self, module: str, name: str) -> Name:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        return Name(f"{module}.{name}".replace("numpy.core.", "numpy._core."))

    def persistent_load(self, pid: tuple) -> Storage | Name:
        if pid[0] == "module":  # PyTorch before 1.6: the class and the text of its source
            return pid[1]
        if self.load_storage is None:
            raise pickle.UnpicklingError("a persistent id")
        return self.load_storage(pid)

    def make(self, name: Name | Instance, arguments: tuple):
        """The object for `name(*arguments)`, which is not called."""
        if not isinstance(name, Name | Instance) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of something that has no name")
        maker = MAKERS.get(name.path) if isinstance(name, Name) else None
        return Instance(name.path, arguments) if maker is None else maker(self, *arguments)

    def store(self, target, items: list):
        """Set target[items[0]] = items[1] and so on. Keys that are no scalars become text."""
        target = target.items if isinstance(target, Instance) else target
        if type(target) is not dict:
            raise pickle.UnpicklingError("an entry of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            key = key.decode("latin1") if isinstance(key, bytes) else key
            is_plain = isinstance(key, SCALARS) and not (isinstance(key, int) and key.bit_length() > 64)
            target[key if is_plain else f"{type(key).__name__} {len(target)}"] = value
        return target

    def extend(self, target, items: list) -> None:
        target = target.elements if isinstance(target, Instance) else target
        if type(target) is not list:
            raise pickle.UnpicklingError("an element of something that is no list")
        target.extend(items)

    # The operations of a pickle that would call, look up or fill objects.

    def load_reduce(self):
        arguments = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], arguments)

    def load_newobj(self):
        arguments = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], arguments)

    def load_newobj_ex(self):
        keywords = self.stack.pop()
        self.load_newobj()
        if isinstance(self.stack[-1], Instance):
            self.stack[-1].state = keywords

    def _instantiate(self, name, arguments):
        self.append(self.make(name, tuple(arguments)))

    def get_extension(self, code):
        raise pickle.UnpicklingError("an extension code")

    def load_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Instance):
            target.state = state
        elif isinstance(target, NumpyArray | NumpyType):
            target.build(state)

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.store(self.stack[-1], [key, value])

    def load_setitems(self):
        items = self.pop_mark()
        self.store(self.stack[-1], items)

    def load_dict(self):
        items = self.pop_mark()
        self.append(self.store({}, items))

    def load_append(self):
        item = self.stack.pop()
        self.extend(self.stack[-1], [item])

    def load_appends(self):
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def load_empty_set(self):
        self.append([])

    def load_frozenset(self):
        items = self.pop_mark()
        self.append(items)

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.ADDITEMS[0]: load_appends,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,  # else its size would be allocated at once
    }
    for operation in (pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[operation[0]]


def make_dict(unpickler: Unpickler, *arguments) -> dict:
    """dict(pairs) or dict(mapping), and those of its subclasses whose arguments are others."""
    content = arguments[0] if arguments else {}
    if isinstance(content, dict):
        return dict(content)
    pairs = content if isinstance(content, list) else []
    return unpickler.store({}, [part for pair in pairs for part in pair])


def make_list(unpickler: Unpickler, *arguments) -> list:
    return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else []


def make_number(unpickler: Unpickler, kind: NumpyType, data=None):
    """A scalar of NumPy; None for kinds other than numbers."""
    return None if kind.dtype is None else np.frombuffer(as_bytes(data), kind.dtype, 1)[0].item()


def make_tensor(unpickler: Unpickler, storage: Storage, offset, shape, strides, *more) -> StoredArray | Instance:
    """A tensor. more: in version 3, the dtype is the third of these arguments."""
    kind = more[2].path.rpartition(".")[2] if len(more) > 2 and isinstance(more[2], Name) else storage.kind
    dtype = number_type(kind)
    if dtype is None:
        return Instance(f"torch.{kind}", (storage,))
    num_elements = storage.num_elements // (dtype.itemsize if storage.kind == "Untyped" else 1)
    shape, strides = tuple(shape), tuple(strides)
    stop = offset + span(shape, strides)
    if type(offset) is not int or offset < 0 or stop > num_elements:
        raise ValueError("a tensor that is larger than its storage")
    if math.prod(shape) > num_elements:
        return Instance("an expanded tensor", (storage,))

    def read() -> np.ndarray:
        part = memoryview(storage.read())[offset * dtype.itemsize : stop * dtype.itemsize]
        return strided(from_bits(part, kind, storage.big_endian), shape, strides)

    return StoredArray(shape, read)


MAKERS = {
    "collections.OrderedDict": make_dict,
    "collections.Counter": make_dict,
    "collections.defaultdict": make_dict,
    "builtins.dict": make_dict,
    "builtins.list": make_list,
    "builtins.set": make_list,
    "builtins.frozenset": make_list,
    "builtins.tuple": lambda unpickler, *arguments: tuple(make_list(unpickler, *arguments)),
    "torch.Size": lambda unpickler, *arguments: tuple(make_list(unpickler, *arguments)),
    "builtins.complex": lambda unpickler, real, imaginary=0.0: [real, imaginary],
    "_codecs.encode": lambda unpickler, text, encoding: as_bytes(text),
    "builtins.bytearray": lambda unpickler, *arguments: as_bytes(arguments[0]) if arguments else b"",
    "builtins.bytes": lambda unpickler, *arguments: as_bytes(arguments[0]) if arguments else b"",
    "numpy.dtype": lambda unpickler, *arguments: NumpyType(*arguments),
    "numpy._core.multiarray.scalar": make_number,
    "numpy._core.multiarray._reconstruct": lambda unpickler, *arguments: NumpyArray(),
    "numpy._core.numeric._frombuffer": lambda unpickler, *arguments: NumpyArray().fill(*arguments),
    "torch._utils._rebuild_tensor": make_tensor,
    "torch._utils._rebuild_tensor_v2": make_tensor,
    "torch._utils._rebuild_tensor_v3": make_tensor,
    "torch._utils._rebuild_parameter": lambda unpickler, tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda unpickler, tensor, *_: tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda unpickler, tensor, *_: tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda unpickler, array, *_: array,
    "torch._tensor._rebuild_from_type_v2": lambda unpickler, function, kind, arguments, state: unpickler.make(
        function, arguments
    ),
    "torch.storage._load_from_bytes": lambda unpickler, data: unpickler.load_bytes(as_bytes(data)),
}
