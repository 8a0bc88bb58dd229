"""Answers as they are written, whatever the model."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest

from service.errors import InferenceFailed
from service.http.routes.v2.response import render
from service.model.directory import ModelDirectory
from service.protocol.call import Call, Wanted

LARGE = (3, 150, 160)
"""More numbers than are rendered by one call."""


def images(*, bad: float | None = None) -> list[np.ndarray]:
    arrays = list(np.random.default_rng(5).normal(0, 9, (2, *LARGE)).astype(np.float32))
    if bad is not None:
        arrays[1].ravel()[-1] = bad
    return arrays


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", np.float32), ("FP16", np.float16)])
def test_large_output_reads_back_exactly_in_either_form(
    model: ModelDirectory, datatype: Literal["FP32", "FP16"], dtype: type
) -> None:
    expected = np.stack(images()).astype(dtype)
    for binary in (False, True):
        call = Call(id="mine", images=(), wanted=[Wanted("stage1", binary=binary, datatype=datatype)])
        rendered = render(call, {"stage1": images()}, model)
        answer = json.loads(rendered.body[: rendered.json_bytes])
        assert list(answer) == ["id", "model_name", "model_version", "outputs"]
        (output,) = answer["outputs"]
        assert (output["datatype"], output["shape"]) == (datatype, [2, *LARGE])
        values = np.frombuffer(rendered.body[rendered.json_bytes :], dtype) if binary else np.array(output["data"])
        np.testing.assert_array_equal(values.astype(dtype).reshape(expected.shape), expected)


def test_outputs_behind_the_json_follow_in_the_order_asked_for(model: ModelDirectory) -> None:
    wanted = [Wanted("stage1", binary=True), Wanted("logits", binary=False), Wanted("embedding", binary=True)]
    ones, twos = np.ones(4, np.float32), np.full(3, 2, np.float32)
    rendered = render(Call(None, (), wanted), {"stage1": [ones], "logits": [ones], "embedding": [twos]}, model)
    answer = json.loads(rendered.body[: rendered.json_bytes])
    assert list(answer) == ["model_name", "model_version", "outputs"]
    assert [output.get("parameters") for output in answer["outputs"]] == [
        {"binary_data_size": 16},
        None,
        {"binary_data_size": 12},
    ]
    assert rendered.body[rendered.json_bytes :] == ones.tobytes() + twos.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_text_refuses_what_json_cannot_hold_and_bytes_take_it(model: ModelDirectory, bad: float) -> None:
    outputs = {"stage1": images(bad=bad)}
    with pytest.raises(InferenceFailed):
        render(Call(None, (), [Wanted("stage1", binary=False)]), outputs, model)
    with pytest.raises(InferenceFailed):
        render(Call(None, (), [Wanted("logits", binary=True, classes=1)]), {"logits": [np.array([bad])]}, model)
    assert render(Call(None, (), [Wanted("stage1", binary=True)]), outputs, model).json_bytes is not None


def test_classes_have_names_where_the_output_is_of_classes(model: ModelDirectory) -> None:
    wanted = [Wanted("logits", binary=False, classes=2), Wanted("embedding", binary=False, classes=1)]
    outputs = {
        "logits": [np.array([0, 3, 1], np.float32), np.array([5, 3, 1], np.float32)],
        "embedding": [np.array([0.5, 2], np.float32), np.array([1, 0], np.float32)],
    }
    logits, embedding = json.loads(render(Call(None, (), wanted), outputs, model).body)["outputs"]
    assert logits["data"] == ["3.000000:1:class 1", "1.000000:2:class 2", "5.000000:0:class 0", "3.000000:1:class 1"]
    assert (logits["datatype"], logits["shape"]) == ("BYTES", [2, 2])
    assert embedding["data"] == ["2.000000:1", "1.000000:0"]
