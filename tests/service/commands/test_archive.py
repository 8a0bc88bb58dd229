from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.commands import archive
from service.commands.archive import ArchiveWriter


def row(number: int) -> dict[str, np.ndarray]:
    return {"embedding": np.full(3, number, np.float32), "stage4": np.full((2, 2), -number, np.float32)}


def test_rows_become_arrays_that_numpy_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_PATHS_AT_A_TIME", 3)
    out = tmp_path / "features.npz"
    with ArchiveWriter(out, ["embedding", "stage4"]) as writer:
        for number in range(8):
            writer.add(f"images/{'x' * number}é.png", row(number))
        writer.finish()
    with np.load(out, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["embedding", "path", "stage4"]
        assert arrays["path"].tolist() == [f"images/{'x' * number}é.png" for number in range(8)]
        np.testing.assert_array_equal(arrays["embedding"], np.stack([row(n)["embedding"] for n in range(8)]))
        np.testing.assert_array_equal(arrays["stage4"], np.stack([row(n)["stage4"] for n in range(8)]))
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


def test_what_is_not_finished_leaves_nothing_and_touches_nothing(tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    out.write_bytes(b"before")

    def fail() -> None:
        with ArchiveWriter(out, ["embedding"]) as writer:
            writer.add("a.png", row(1))
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


def test_without_rows_nothing_is_written(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "features.npz", ["embedding"]) as writer:
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_another_shape_is_refused_whole(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "features.npz", ["embedding", "stage4"]) as writer:
        writer.add("a.png", row(1))
        with pytest.raises(ValueError, match=r"stage4 of b\.png has the shape"):
            writer.add("b.png", {**row(2), "stage4": np.zeros(4, np.float32)})
        writer.finish()
    with np.load(tmp_path / "features.npz") as arrays:
        assert [len(arrays[name]) for name in arrays] == [1, 1, 1]
