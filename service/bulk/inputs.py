"""The images of a part, one after another: from files, from a tar shard, or from rows of a Parquet file.

Nothing is held beyond the image at hand. What is wrong with an image, or with the rest of a shard, is an item like
others; what the system could not read, and might at another time, raises InputError.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import StartupError
from service.images.files import reason_of, too_large
from service.images.names import LeftOut, is_image_name, suffix_of
from service.predictors.types import Fault

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
PARQUET_SUFFIXES = (".parquet",)
_ROWS_AT_A_TIME = 32
_BUFFER_BYTES = 1 << 20
"""Read of a column at a time, in place of all that a row group has of it."""
_MAGIC_BYTES = 6
_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""What packed files are read with, by their first bytes."""


class InputError(StartupError):
    """An input is not there, cannot be read, or is not what it should be."""

    code = "bulk_input"


@dataclass(frozen=True, slots=True)
class Item:
    """One image: where it comes from, and its bytes, or what is wrong with it."""

    source: str
    """The file that it is in, as found on the command line."""
    row: int
    """Its place there, from 0: a row of a Parquet file, an image of a shard; 0 where the file is the image."""
    data: bytes | Fault | None = None
    """None where `source` is the image, to be read in its turn."""
    key: str | None = None
    """Of an image in a shard: its name up to the first dot of the last component, as WebDataset groups samples."""
    name: str | None = None
    """Its name within `source`, if it has one."""


def file_items(paths: Sequence[str]) -> Iterator[Item]:
    """Yield image files, without opening them."""
    return (Item(path, 0) for path in paths)


def shard_items(path: str, max_bytes: int, left_out: LeftOut | None = None) -> Iterator[Item]:
    """Yield the images of a tar shard, packed or not, in their order, and count members of other names in `left_out`.

    Archives that were put one behind another are read to the end of the last. Where the shard breaks off, the last
    item has the fault `bad_shard`.
    """
    row = 0
    members = _Members(LeftOut() if left_out is None else left_out)
    try:
        with _open_shard(path) as shard:
            while (member := shard.next()) is not None:
                shard.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.isdir() or not members.is_image(member.name):
                    continue
                data = _member_bytes(shard, member, max_bytes)
                yield Item(path, row, data, members.key_of(member.name), member.name)
                row += 1
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: {reason_of(error)}") from error
        detail = f"The shard cannot be read from here on: {error}."
        yield Item(path, row, Fault("bad_shard", detail))
    members.finish()


@contextmanager
def _open_shard(path: str) -> Iterator[tarfile.TarFile]:
    """Open a shard as a stream, by what it is packed with; raises what reading it does."""
    with Path(path).open("rb") as file:
        magic = file.read(_MAGIC_BYTES)
        file.seek(0)
        # These read streams that follow each other as one, where tarfile's own would end with the first.
        unpack = next((each for start, each in _UNPACKERS.items() if magic.startswith(start)), nullcontext)
        with (
            unpack(file) as content,
            # ignore_zeros: what marks the end of an archive may be followed by another archive.
            tarfile.open(fileobj=content, mode="r|", tarinfo=_StrictHeader, ignore_zeros=True) as shard,
        ):
            yield shard


class _StrictHeader(tarfile.TarInfo):
    """A header that must be one, or the mark of the end: tarfile takes anything else in mid-file for the end, too.

    The end of the file is good after such a mark alone.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictHeader:
        try:
            header = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            kind = type(error).__name__
            if kind == "EOFHeaderError":
                archive.after_mark = True  # type: ignore[attr-defined]  # of this archive alone
                raise
            if kind == "EmptyHeaderError" and getattr(archive, "after_mark", False):
                raise
            raise tarfile.ReadError(f"{error}, where a member or the end of the archive should be") from error
        archive.after_mark = False  # type: ignore[attr-defined]
        return header


class _Members:
    """Which members of a shard are images, and what becomes of the others.

    A member that is none may come before the image that it belongs to, so that those are decided at the end.
    """

    def __init__(self, left_out: LeftOut) -> None:
        self._left_out = left_out
        self._keys: set[str] = set()
        self._waiting: defaultdict[str, Counter[str]] = defaultdict(Counter)

    @staticmethod
    def key_of(name: str) -> str:
        """Return a member's name up to the first dot of its last component."""
        folder, slash, base = name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    def is_image(self, name: str) -> bool:
        """Tell whether a member is an image by its name, and count it where it is none."""
        base = name.rpartition("/")[2]
        key = self.key_of(name)
        if base.startswith("."):
            self._left_out.hidden += 1
            return False
        if is_image_name(base):
            self._keys.add(key)
            return True
        self._waiting[key][suffix_of(base)] += 1
        return False

    def finish(self) -> None:
        """Count those that were waiting."""
        for key, suffixes in self._waiting.items():
            (self._left_out.companions if key in self._keys else self._left_out.others).update(suffixes)


def _member_bytes(shard: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | Fault:
    if not member.isfile():
        return Fault("not_a_file", "The shard has a link, or another thing without bytes, under this name.")
    if member.size > max_bytes:
        return too_large("image", max_bytes)
    file = shard.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} is cut off")
    return data


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Row groups of a Parquet file that follow each other."""

    path: str
    column: str
    first: int
    count: int
    first_row: int
    rows: int


def row_groups(path: str, column: str | None, *, rows: int) -> Iterator[RowGroups]:
    """Yield a file's row groups, as many at a time as have at least that many rows; raises InputError.

    Without a `column` it is `image`, or the only one that can hold images.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            chosen = _image_column(path, file.schema_arrow, column)
            first = row = pending = 0
            for number in range(metadata.num_row_groups):
                pending += metadata.row_group(number).num_rows
                if pending >= rows or number == metadata.num_row_groups - 1:
                    yield RowGroups(path, chosen, first, number + 1 - first, row, pending)
                    first, row, pending = number + 1, row + pending, 0
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def row_items(groups: RowGroups, max_bytes: int) -> Iterator[Item]:
    """Yield the images of row groups; where they cannot be read on, the last item has the fault `bad_rows`."""
    row, end = groups.first_row, groups.first_row + groups.rows
    wanted = range(groups.first, groups.first + groups.count)
    try:
        with pq.ParquetFile(groups.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=wanted, columns=[groups.column]):
                for cell in batch.column(0):
                    data, name = _image_in(cell.as_py(), max_bytes)
                    yield Item(groups.path, row, data, name=name)
                    row += 1
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{groups.path}: {reason_of(error)}") from error
        yield Item(groups.path, row, Fault("bad_rows", f"Rows {row} to {end - 1} cannot be read: {error}."))


def _image_column(path: str, schema: pa.Schema, column: str | None) -> str:
    able = [field.name for field in schema if _holds_images(field.type)]
    if column is None:
        if "image" not in able and len(able) != 1:
            if not able:
                raise InputError(f"{path} has no column of bytes, or of structs with bytes")
            raise InputError(f"{path}: name the column of images with --column, of {', '.join(able)}")
        return "image" if "image" in able else able[0]
    if column not in able:
        held = "holds no bytes, nor structs with bytes" if column in schema.names else "is not there"
        raise InputError(f"{path}: the column {column!r} {held}")
    return column


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _image_in(cell: Any, max_bytes: int) -> tuple[bytes | Fault, str | None]:
    """Return a cell's image and, where the cell is a struct with a path, its name."""
    data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if data is None:
        return Fault("no_image", "The row holds no bytes."), name
    return (too_large("image", max_bytes) if len(data) > max_bytes else bytes(data)), name


def kind_of(path: str) -> str:
    """Return what a file is taken for by its name: `tar`, `parquet` or `image`."""
    name = os.path.basename(path).lower()  # noqa: PTH119  # paths are strings here, there may be a million
    if name.endswith(TAR_SUFFIXES):
        return "tar"
    return "parquet" if name.endswith(PARQUET_SUFFIXES) else "image"
