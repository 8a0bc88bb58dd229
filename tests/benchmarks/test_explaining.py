from __future__ import annotations

import os
from pathlib import Path

from benchmarks.explaining import _without_explain
from benchmarks.processes import resident_bytes
from service.model.directory import open_model, select_model
from tests.service import tiny_model


def test_copy_without_explanations_is_the_same_model(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path / "with"))
    _without_explain(model, tmp_path / "without")
    copy = select_model(tmp_path / "without")
    assert (copy.manifest.name, copy.manifest.version, copy.manifest.explain) == (tiny_model.NAME, 3, None)
    assert not copy.explain_path.exists()
    assert copy.model_path.read_bytes() == model.model_path.read_bytes()
    assert model.manifest.explain is not None


def test_memory_of_a_process_is_more_than_what_it_has_just_taken() -> None:
    taken = bytearray(os.urandom(1)) * 50_000_000
    assert 50_000_000 < resident_bytes(os.getpid()) < 50_000_000_000
    assert len(taken) == 50_000_000
