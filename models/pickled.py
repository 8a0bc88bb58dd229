"""Pickles as data: tensors, arrays and plain containers are made, and all else becomes an inert stand-in.

    read_archive(archive)   what torch.save writes, a zip archive -> the object in it
    read_stream(file)       what torch.save wrote before version 1.6, or a plain pickle -> the object in it

Invariants: no name in a pickle is ever looked up or imported. `find_class` answers from `_BUILDERS`, whose entries
make data and nothing else, or with a new class below `Foreign`, which keeps what the pickle gives it and does nothing.
Neither can be altered by a pickle. Names of what runs programs are refused besides, which protects nobody further but
says what kind of file this is.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any, Final, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OLD_TORCH_MAGIC: Final = 0x1950A86A20F9469CFC6C
"""The first pickle of a file of torch.save before version 1.6."""
_PICKLE_RECORD: Final = "data.pkl"
_LOCAL_HEADER_BYTES: Final = 30
"""Of a zip archive's record, before its name."""

_STORAGE_DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}
_NUMBERS: Final = re.compile(r"[<>|=]?[biuf][0-9]+|\?")
"""NumPy's names of types that are numbers; others, objects above all, stay inert."""

_PROGRAM_MODULES: Final = frozenset(
    {
        "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "ctypes", "importlib", "runpy", "pty", "pdb",
        "bdb", "timeit", "cProfile", "webbrowser", "pip", "pickle", "_pickle", "marshal", "multiprocessing",
    }
)  # fmt: skip
_BUILTIN_MODULES: Final = ("builtins", "__builtin__", "io", "_io")
"""With Python 2's, and where `open` says that it comes from."""
_PROGRAM_BUILTINS: Final = frozenset(
    {
        "eval", "exec", "execfile", "compile", "open", "file", "input", "raw_input", "apply", "breakpoint", "exit",
        "quit", "globals", "locals", "vars", "delattr", "setattr", "memoryview", "help", "reload", "__import__",
    }
)  # fmt: skip


class ProgramInPickle(pickle.UnpicklingError):
    """The pickle names what runs programs or reaches the system: it is an attack, or no checkpoint."""


class Foreign:
    """An object that is not made: what the pickle gives it is kept, and nothing is done with it.

    Each class that a pickle names has a subclass of its own, which it may instantiate, call and fill at will.
    """

    qualified_name = ""
    arguments: tuple[Any, ...]
    entries: dict[Any, Any]
    state: Any

    def __new__(cls, *arguments: Any, **named: Any) -> Foreign:
        """Keep what the class would have been called with."""
        stand_in = object.__new__(cls)
        stand_in.arguments, stand_in.entries, stand_in.state = arguments, named, None
        return stand_in

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def __call__(self, *_: Any, **__: Any) -> Foreign:
        """Stay what it is, where the pickle means to call what an earlier call would have returned."""
        return self

    def _pass_over(self, *values: Any) -> None:
        """Take no elements: a list or a set of another class holds no weights."""

    append = extend = add = update = _pass_over


class Array:
    """A pickled NumPy array; `values` is None where it holds other things than numbers."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: str) -> None:
        """Take an array's bytes."""
        if not isinstance(dtype, _ArrayType) or not _NUMBERS.fullmatch(dtype.name):
            return
        content = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
        if not isinstance(content, (bytes, bytearray)) or order not in ("C", "F"):
            raise pickle.UnpicklingError("an array without its bytes")
        self.values = np.frombuffer(content, np.dtype(dtype.name)).reshape(tuple(map(int, shape)), order=order)  # type: ignore[call-overload]


class _ArrayType:
    """A pickled NumPy dtype, by its name."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name if isinstance(name, str) else ""

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if self.name[:1] not in "<>|=" and order in ("<", ">"):
            self.name = order + self.name


class _Mapping(dict[Any, Any]):
    """In place of an OrderedDict: a dictionary to which no attributes can be given."""

    def __setstate__(self, state: Any) -> None:
        """Pass over the attributes, such as the `_metadata` of a state dict."""


class _Builder:
    """A function that a pickle may call, and cannot alter."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a pickle that alters functions")


class _StorageKind:
    """The class of a storage, which only says what its numbers are."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a pickle that alters classes")


class _Storage:
    """The numbers that tensors are views of: one dimension, one type."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a pickle that alters storages")


class View:
    """A pickled tensor, which a pickle cannot write to."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a pickle that alters tensors")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> View:
    """Return a view of a storage; torch refuses one that reaches beyond it."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without its numbers")
    return View(torch.as_strided(storage.values, tuple(size), tuple(stride), offset))


def _typed_tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> View:
    """Return a view of an untyped storage, whose type comes after two other arguments."""
    dtype = rest[2]
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without its numbers")
    return View(torch.as_strided(storage.values.view(dtype), tuple(size), tuple(stride), offset))


def _first(data: Any, *_: Any) -> Any:
    """Return the tensor or array that something is made from."""
    return data


def _of_subclass(build: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """Return the tensor that an object of a subclass of tensors is made from."""
    return build(*arguments) if isinstance(build, _Builder) else Foreign()


def _text_as_bytes(text: str, encoding: str = "latin1") -> bytes:
    """Return what Python 3 writes as text where the pickle's protocol has no bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> Any:
    """Return what Python 3 writes as a call without arguments where the pickle's protocol has no bytes."""
    return Foreign() if arguments else b""


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: str, *_: Any) -> Array:
    array = Array()
    array.fill(data, dtype, shape, order)
    return array


_BUILDERS: Final[dict[str, Any]] = {
    "collections.OrderedDict": _Mapping,
    "torch._utils._rebuild_tensor": _Builder(_tensor),
    "torch._utils._rebuild_tensor_v2": _Builder(_tensor),
    "torch._utils._rebuild_tensor_v3": _Builder(_typed_tensor),
    **{
        f"torch._utils.{name}": _Builder(_first)
        for name in (
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
            "_rebuild_device_tensor_from_numpy",
            "_rebuild_device_tensor_from_cpu_tensor",
        )
    },
    "torch._tensor._rebuild_from_type_v2": _Builder(_of_subclass),
    "torch.storage._load_from_bytes": _Builder(lambda data: read_stream(io.BytesIO(data))),
    "torch.Size": _Builder(tuple),
    "_codecs.encode": _Builder(_text_as_bytes),
    "builtins.bytes": _Builder(_no_bytes),
    "__builtin__.bytes": _Builder(_no_bytes),
    "numpy.dtype": _ArrayType,
    **{
        f"{package}.{name}": builder
        for package in ("numpy.core", "numpy._core")
        for name, builder in {
            "multiarray._reconstruct": _Builder(Array),
            "numeric._frombuffer": _Builder(_array_of_buffer),
        }.items()
    },
}
"""What names in a pickle stand for. Every value makes data, and has a `__setstate__`, so that none can be altered."""


class _DataUnpickler(pickle.Unpickler):
    """Reads one pickle; `load_storage` turns a persistent id's (dtype, key, count, view) into a storage."""

    def __init__(self, file: IO[bytes], load_storage: Callable[..., _Storage] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, without looking it up."""
        first = name.partition(".")[0]
        if module in _PROGRAM_MODULES or (module in _BUILTIN_MODULES and first in _PROGRAM_BUILTINS):
            raise ProgramInPickle(f"{module}.{name}")
        path = f"{module}.{name}"
        if path in _BUILDERS:
            return _BUILDERS[path]
        if module.partition(".")[0] == "torch":
            if first in _STORAGE_DTYPES:
                return _StorageKind(_STORAGE_DTYPES[first])
            dtype = vars(torch).get(name) if module == "torch" else None
            if isinstance(dtype, torch.dtype):
                return dtype
        return type("Foreign", (Foreign,), {"qualified_name": path})

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage; of a module's class, whose source is kept beside it, the class's stand-in."""
        kind, *rest = pid
        if kind in ("module", b"module"):
            return rest[0]
        if kind not in ("storage", b"storage") or self._load_storage is None:
            raise pickle.UnpicklingError(f"an unknown kind of reference, {kind!r}")
        storage_kind, key, _, count, *view = rest
        if not isinstance(storage_kind, _StorageKind):
            raise pickle.UnpicklingError("numbers of an unknown type")
        return self._load_storage(storage_kind.dtype, str(key), int(count), view[0] if view else None)


def archive_root(archive: zipfile.ZipFile) -> str | None:
    """Return the folder of an archive that holds what torch.save wrote, such as "archive/"; None in other archives."""
    for name in archive.namelist():
        folder, slash, base = name.rpartition("/")
        if base == _PICKLE_RECORD and "/" not in folder:
            return folder + slash
    return None


def read_archive(archive: zipfile.ZipFile) -> Any:
    """Return the object in an archive of torch.save.

    Raises ProgramInPickle, or pickle.UnpicklingError and other exceptions for one that is damaged.
    """
    root = archive_root(archive)
    if root is None:
        raise pickle.UnpicklingError(f"no {_PICKLE_RECORD} in it")
    pickled = archive.getinfo(root + _PICKLE_RECORD)
    content = _record(archive, pickled)
    # torch can be told to leave checksums out, and then leaves out all of them.
    is_checked = zlib.crc32(content) == pickled.CRC
    order = root + "byteorder"
    is_foreign = order in archive.NameToInfo and _record(archive, archive.getinfo(order)).decode() != sys.byteorder
    storages: dict[str, _Storage] = {}

    def load_storage(dtype: torch.dtype, key: str, count: int, _view: Any) -> _Storage:
        if key not in storages:
            record = archive.getinfo(f"{root}data/{key}")
            data = _record(archive, record)
            if is_checked and zlib.crc32(data) != record.CRC:
                raise pickle.UnpicklingError(f"the numbers in {record.filename} do not match their checksum")
            storages[key] = _Storage(_numbers(data, dtype, count, swap=is_foreign))
        return storages[key]

    return _DataUnpickler(io.BytesIO(content), load_storage).load()


def _record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bytearray:
    """Return a record's bytes, unchecked where it is not packed, as torch writes them."""
    if record.compress_type != zipfile.ZIP_STORED:
        return bytearray(archive.read(record))
    file = archive.fp
    assert file is not None  # it is open
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = (int.from_bytes(header[start : start + 2], "little") for start in (26, 28))
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    data = bytearray(file.read(record.file_size))
    if len(data) != record.file_size:
        raise EOFError(f"{record.filename} is cut off")
    return data


def _numbers(data: bytearray, dtype: torch.dtype, count: int, *, swap: bool) -> Tensor:
    if len(data) != count * dtype.itemsize:
        raise pickle.UnpicklingError(f"{len(data)} bytes for {count} numbers of {dtype.itemsize} bytes")
    if not count:
        return torch.empty(0, dtype=dtype)
    if swap:
        np.frombuffer(data, f"u{dtype.itemsize}").byteswap(inplace=True)
    return torch.frombuffer(data, dtype=dtype)


def read_stream(file: IO[bytes]) -> Any:
    """Return the object of a plain pickle, or of a file of torch.save before version 1.6; raises as `read_archive`."""
    first = _DataUnpickler(file).load()
    if first != OLD_TORCH_MAGIC:
        return first
    for _ in ("the protocol's version", "the system's facts"):
        _DataUnpickler(file).load()
    size_bytes = file.seek(0, os.SEEK_END) if (place := file.tell()) >= 0 else 0
    file.seek(place)
    storages: dict[str, _Storage] = {}

    def load_storage(dtype: torch.dtype, key: str, count: int, view: Any) -> _Storage:
        if key not in storages:
            if count * dtype.itemsize > size_bytes:
                raise EOFError(f"{count} numbers in a file of {size_bytes} bytes")
            storages[key] = _Storage(torch.empty(count, dtype=dtype))
        if view is None:
            return storages[key]
        view_key, offset, length = view
        return storages.setdefault(str(view_key), _Storage(storages[key].values[offset : offset + length]))

    content = _DataUnpickler(file, load_storage).load()
    for key in _DataUnpickler(file).load():  # the numbers follow, in this order
        values = storages[str(key)].values
        count = int.from_bytes(file.read(8), "little")
        data = bytearray(file.read(count * values.itemsize))
        if count != len(values) or len(data) != count * values.itemsize:
            raise EOFError("the numbers are cut off")
        if count:
            values.copy_(torch.frombuffer(data, dtype=values.dtype))
    return content
