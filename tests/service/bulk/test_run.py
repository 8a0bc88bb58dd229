"""A part is kept only if the model that answered for it is still the one that the run began with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from service.bulk.journal import open_journal
from service.bulk.parts import plan
from service.bulk.run import Question, run_parts
from service.bulk.writing import schema_of
from service.engine.types import Outputs
from service.model.directory import Label
from service.model.postprocess import BEST, Choice
from service.predictors.types import Fault, PredictorFailed, PredictorModel, Ranking
from tests.service.bulk.sets import write_files

MODEL = PredictorModel("a", 1, (Label(0, "zero"),), {"logits": (1,)}, "logits", "fp32", "2026-01-01T00:00:00Z", "x")


class Replaced:
    """A model that is another after so many confirmations."""

    def __init__(self, confirmations: int) -> None:
        self.model = MODEL
        self.concurrency = 4
        self._left = confirmations

    async def confirm(self) -> None:
        if self._left == 0:
            raise PredictorFailed("It is another.")
        self._left -= 1

    async def classify(self, image: bytes, choice: Choice = BEST) -> Ranking | Fault:
        raise NotImplementedError

    async def features(self, image: bytes, outputs: Sequence[str]) -> Outputs | Fault:
        return {name: np.ones(1, np.float32) for name in outputs}


async def test_parts_of_a_model_that_changed_meanwhile_are_not_kept(tmp_path: Path) -> None:
    write_files(tmp_path / "in", 6)
    parts = plan(sorted(map(str, (tmp_path / "in").iterdir())), part_images=2, column=None)
    question, schema = Question((), Choice(1), 1_000_000), schema_of({}, model={})
    with open_journal(tmp_path / "out") as journal:
        run = run_parts(parts, question, Replaced(confirmations=2), journal=journal, schema=schema)
        async with aclosing(run) as done:
            assert [(await anext(done))[0].number for _ in range(2)] == [0, 1]
            with pytest.raises(PredictorFailed, match="another"):
                await anext(done)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_lock", "part-000000.parquet", "part-000001.parquet",
    ]  # fmt: skip
