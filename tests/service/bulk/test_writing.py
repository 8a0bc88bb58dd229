from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from service.bulk import writing
from service.bulk.inputs import Item
from service.bulk.writing import Answer, Counts, PartWriter, read_counts, schema_of
from service.errors import StartupError
from service.predictors.types import Fault, Prediction
from service.samples.columns import METADATA_KEY

SHAPES = {"embedding": (3,), "stage4": (2, 2, 1)}


def answer(number: int) -> Answer:
    outputs = {"embedding": np.full(3, number, np.float32), "stage4": np.arange(4, dtype=np.float32).reshape(2, 2, 1)}
    return Answer([Prediction(number, f"class {number}", 0.5)], outputs)


def test_rows_and_shapes_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_GROUP_ROWS", 2)
    path = tmp_path / "p.parquet"
    with PartWriter(path, schema_of(SHAPES, model={"name": "tiny"})) as writer:
        full = [
            writer.add(Item("a.tar", 0, b"data", "k", "k.png"), answer(1)),
            writer.add(Item("b\udcff.png", 0), Fault("code", "detail")),
        ]
        writer.write()
        full.append(writer.add(Item("c.png", 0), answer(3)))
        assert (full, writer.close()) == ([False, True, False], Counts(3, 1))
    assert read_counts(path) == Counts(3, 1)
    assert pq.read_metadata(path).num_row_groups == 2
    table = pq.read_table(path)
    document = json.loads(table.schema.metadata[METADATA_KEY])
    assert document == {"model": {"name": "tiny"}, "outputs": {"embedding": [3], "stage4": [2, 2, 1]}}
    first, second, third = table.to_pylist()
    assert first == {
        "source": "a.tar", "row": 0, "key": "k", "name": "k.png", "error": None,
        "predictions": [{"class_id": 1, "label": "class 1", "score": 0.5}],
        "embedding": [1.0, 1.0, 1.0], "stage4": [0.0, 1.0, 2.0, 3.0],
    }  # fmt: skip
    assert second == {
        "source": "b\\xff.png", "row": 0, "key": None, "name": None, "predictions": None, "embedding": None,
        "stage4": None, "error": {"code": "code", "detail": "detail"},
    }  # fmt: skip
    assert (third["source"], third["embedding"]) == ("c.png", [3.0, 3.0, 3.0])


def test_large_rows_are_written_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_GROUP_BYTES", 4 * 7 * 2)
    with PartWriter(tmp_path / "p.parquet", schema_of(SHAPES, model={})) as writer:
        assert [writer.add(Item("a", 0), answer(1)) for _ in range(2)] == [False, True]


def test_the_images_themselves_are_not_kept(tmp_path: Path) -> None:
    with PartWriter(tmp_path / "p.parquet", schema_of({}, model={})) as writer:
        writer.add(Item("a.tar", 0, bytes(1000)), answer(1))
        assert [item.data for item, _ in writer._rows] == [None]


def test_a_part_without_images_is_a_file_without_rows(tmp_path: Path) -> None:
    with PartWriter(tmp_path / "p.parquet", schema_of(SHAPES, model={})) as writer:
        assert writer.close() == Counts(0, 0)
    assert pq.read_table(tmp_path / "p.parquet").num_rows == 0


@pytest.mark.parametrize("content", [b"", b"PAR1"])
def test_a_damaged_part_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "part-000000.parquet"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=r"part-000000\.parquet is damaged"):
        read_counts(path)
