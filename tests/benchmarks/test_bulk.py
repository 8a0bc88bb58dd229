from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bulk as scenario
from benchmarks.scenarios import Bench
from service.bulk.inputs import shard_items
from tests.service.bulk.sets import write_files
from tests.service.conftest import repository as repository


def bench_of(repository: Path, files: list[Path]) -> Bench:
    return Bench(
        repository=repository, model="tiny", device="cpu", port=0, duration_s=2.0, rounds=1, concurrency=(1,),
        workers=1, seed=0, options=["--threads=1"], files=files,
    )  # fmt: skip


def test_both_inputs_have_every_image_however_often_a_photo_comes_again(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, write_files(tmp_path / "photos", 2))
    (tmp_path / "root").mkdir()
    inputs = scenario._write_inputs(bench, tmp_path / "root", 5)
    wanted = [path.read_bytes() for path in bench.files]
    files = [path.read_bytes() for path in sorted(inputs["files"].iterdir())]
    shard = [item.data for item in shard_items(str(inputs["shard"]), 1 << 20)]
    assert files == shard == [wanted[number % 2] for number in range(5)]


def test_a_rate_of_fewer_images_than_there_are_is_refused(repository: Path, tmp_path: Path) -> None:
    bench = bench_of(repository, write_files(tmp_path / "photos", 2))
    assert scenario._bulk(bench, tmp_path / "photos", tmp_path / "out", images=2) > 0
    with pytest.raises(RuntimeError, match="bulk found 2 of 3 images"):
        scenario._bulk(bench, tmp_path / "photos", tmp_path / "out", images=3)
