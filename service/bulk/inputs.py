"""The images of a part, one after another: from files, from a tar shard, or from rows of a Parquet file.

Nothing is held beyond the image at hand. What is wrong with an image, or with the rest of a shard, is an item like
others; what the system could not read, and might at another time, raises InputError.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import StartupError
from service.image_files import SUFFIXES, reason_of, too_large
from service.predictors.types import Fault

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIXES = (".parquet",)
_ROWS_AT_A_TIME = 32
_BUFFER_BYTES = 1 << 20
"""Read of a column at a time, in place of all that a row group has of it."""


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


def shard_items(path: str, max_bytes: int) -> Iterator[Item]:
    """Yield the images of a tar shard, packed or not, in their order; members of other kinds are passed over.

    Where the shard breaks off, the last item has the fault `bad_shard`.
    """
    row = 0
    try:
        with tarfile.open(path, "r|*", tarinfo=_StrictHeader) as shard:
            while (member := shard.next()) is not None:
                shard.members = []  # type: ignore[attr-defined]  # it would keep them all
                folder, _, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if member.isdir() or not (stem and dot and f".{suffix}".lower().endswith(SUFFIXES)):
                    continue
                key = f"{folder}/{stem}" if folder else stem
                yield Item(path, row, _member_bytes(shard, member, max_bytes), key, member.name)
                row += 1
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: {reason_of(error)}") from error
        detail = f"The shard cannot be read from here on: {error}."
        yield Item(path, row, Fault("bad_shard", detail))


class _StrictHeader(tarfile.TarInfo):
    """A header that must be one, or the mark of the end: tarfile takes anything else in mid-file for the end, too."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictHeader:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"{error}, where a member or the end of the archive should be") from error


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
