"""Cutting the input into parts, the units of a run: each is done whole or not at all.

The cut depends on the list of files, on the row groups of the Parquet files among them, and on `part_images`, so that
the same input gives the same parts at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.bulk.inputs import Item, RowGroups, file_items, kind_of, row_groups, row_items, shard_items
from service.images.names import LeftOut

Content = tuple[str, ...] | RowGroups | str
"""Image files, row groups of a Parquet file, or a tar shard."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the input."""

    number: int
    content: Content

    @property
    def images(self) -> int | None:
        """How many images it has; nobody knows of a shard before its end."""
        match self.content:
            case tuple():
                return len(self.content)
            case RowGroups():
                return self.content.rows
            case _:
                return None

    def items(self, max_bytes: int, left_out: LeftOut | None = None) -> Iterator[Item]:
        """Yield its images in order, without reading larger ones than `max_bytes`; count what is none in `left_out`."""
        match self.content:
            case tuple():
                return file_items(self.content)
            case RowGroups():
                return row_items(self.content, max_bytes)
            case _:
                return shard_items(self.content, max_bytes, left_out)


def plan(files: Sequence[str], *, part_images: int, column: str | None) -> list[Part]:
    """Return the parts of the files, in their order.

    A part is up to `part_images` image files that follow each other, a whole tar shard, or the row groups of a
    Parquet file that have at least `part_images` rows together. Raises InputError.
    """
    return [Part(number, content) for number, content in enumerate(_contents(files, part_images, column))]


def _contents(files: Sequence[str], part_images: int, column: str | None) -> Iterator[Content]:
    images: list[str] = []
    for path in files:
        kind = kind_of(path)
        if kind == "image":
            images.append(path)
        if images and (kind != "image" or len(images) == part_images):
            yield tuple(images)
            images = []
        if kind == "tar":
            yield path
        elif kind == "parquet":
            yield from row_groups(path, column, rows=part_images)
    if images:
        yield tuple(images)
