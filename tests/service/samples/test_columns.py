from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.model.directory import open_model
from service.model.postprocess import softmax
from service.samples.columns import sample_as_parquet
from service.samples.records import SampledImage, SampledRequest
from tests.service import tiny_model


@pytest.mark.parametrize("temperature", [None, 3.0])
def test_scores_are_those_that_were_answered(tmp_path: Path, temperature: float | None) -> None:
    model = open_model(tiny_model.write(tmp_path, temperature=temperature))
    logits = np.linspace(-4, 4, model.manifest.num_classes, dtype=np.float32)
    image = SampledImage(0, {model.manifest.class_output: logits}, None, None)
    request = SampledRequest(0.0, "id", "/v1/classify", model, 2, [image])
    written = sample_as_parquet(model, [request], with_images=False, with_names=False)
    (row,) = pq.read_table(pa.BufferReader(written)).to_pylist()
    expected = softmax(logits, temperature)
    assert [each["class_id"] for each in row["predictions"]] == [len(logits) - 1, len(logits) - 2]
    assert [each["score"] for each in row["predictions"]] == pytest.approx(expected[[-1, -2]].tolist(), rel=1e-6)
