"""One part's rows as a Parquet file.

A row an image, in order: `source`, `row`, `key` and `name` say which (see `inputs.Item`), `predictions` are its
classes, highest first, and every output is a list of float32 of one length, whose shape the schema's metadata has. A
bad image has an `error` in place of these. The rows go to the file a few megabytes at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.inputs import Item
from service.engine.types import Outputs
from service.errors import StartupError
from service.images.names import LeftOut
from service.predictors.types import Fault, Ranking
from service.samples.columns import METADATA_KEY, PREDICTION, metadata_of, vectors

_BAD_KEY = "dat_serve.bad_images"
_LEFT_OUT_KEY = "dat_serve.left_out"
_GROUP_ROWS = 1024
_GROUP_BYTES = 16 << 20
_ERROR = pa.struct([("code", pa.string()), ("detail", pa.string())])
_TEXT_COLUMNS = ["source", "predictions.list.element.label", "error.code", "error.detail"]
"""Those whose values repeat."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a good image."""

    ranking: Ranking
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class Counts:
    """Images of a part, how many of them are bad, and what was left out beside them."""

    images: int
    bad: int
    left_out: LeftOut = field(default_factory=LeftOut)

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both."""
        return Counts(self.images + other.images, self.bad + other.bad, self.left_out + other.left_out)


class PartWriter:
    """Takes the rows of one part until `close`; a context manager, which closes the file in any case."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._shapes = shapes_of(schema)
        self._rows: list[tuple[Item, Answer | Fault]] = []
        self._row_bytes = 4 * sum(math.prod(shape) for shape in self._shapes.values())
        self._images = self._bad = 0
        self.left_out = LeftOut()
        """What the part's shard holds under names that no image has; given before `close`."""
        self._file = pq.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=_TEXT_COLUMNS, write_statistics=["source", "row"]
        )

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, item: Item, answer: Answer | Fault) -> bool:
        """Add a row, and return whether there are enough for `write`."""
        self._rows.append((replace(item, data=None), answer))
        self._images += 1
        self._bad += isinstance(answer, Fault)
        return len(self._rows) >= _GROUP_ROWS or len(self._rows) * self._row_bytes >= _GROUP_BYTES

    def write(self) -> None:
        """Write the rows that were added, as one row group."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        items = [item for item, _ in rows]
        good = [None if isinstance(answer, Fault) else answer for _, answer in rows]
        columns = [
            pa.array([_text(item.source) for item in items], pa.string()),
            pa.array([item.row for item in items], pa.int64()),
            pa.array([_text(item.key) for item in items], pa.string()),
            pa.array([_text(item.name) for item in items], pa.string()),
            pa.array([answer and [each._asdict() for each in answer.ranking] for answer in good], pa.list_(PREDICTION)),
            *(
                vectors([None if answer is None else answer.outputs[name] for answer in good], shape)
                for name, shape in self._shapes.items()
            ),
            pa.array([asdict(answer) if isinstance(answer, Fault) else None for _, answer in rows], _ERROR),
        ]
        self._file.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema), row_group_size=len(rows))

    def close(self) -> Counts:
        """Write the rest, end the file, and return what it has."""
        self.write()
        self._file.add_key_value_metadata(
            {_BAD_KEY: str(self._bad), _LEFT_OUT_KEY: json.dumps(self.left_out.as_dict())}
        )
        self._file.close()
        return Counts(self._images, self._bad, self.left_out)


def schema_of(shapes: Mapping[str, Sequence[int]], *, model: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of rows with outputs of these shapes."""
    return pa.schema(
        [
            ("source", pa.string()),
            ("row", pa.int64()),
            ("key", pa.string()),
            ("name", pa.string()),
            ("predictions", pa.list_(PREDICTION)),
            *((name, pa.list_(pa.float32(), math.prod(shape))) for name, shape in shapes.items()),
            ("error", _ERROR),
        ],
        metadata=metadata_of(shapes, model=model),
    )


def shapes_of(schema: pa.Schema) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output, by the metadata of a part's schema."""
    outputs = json.loads(schema.metadata[METADATA_KEY])["outputs"]
    return {name: tuple(shape) for name, shape in outputs.items()}


def read_counts(path: Path) -> Counts:
    """Return what a finished part has; raises StartupError where that cannot be read."""
    try:
        metadata = pq.read_metadata(path)
        document = metadata.metadata.get(_LEFT_OUT_KEY.encode())  # older parts have none
        left_out = LeftOut() if document is None else LeftOut.from_dict(json.loads(document))
        return Counts(metadata.num_rows, int(metadata.metadata[_BAD_KEY.encode()]), left_out)
    except (OSError, pa.ArrowException, KeyError, TypeError, AttributeError, ValueError) as error:
        raise StartupError(f"{path} is damaged, remove it to have it made again: {error}") from error


def _text(name: str | None) -> str | None:
    """Return a name as text: bytes of it that are not UTF-8 are escaped."""
    return name and name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
