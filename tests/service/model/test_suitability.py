"""Warnings about models in a form that a device runs slowly, and settings that do not fit a model."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.model.directory import open_model
from service.model.loading import graphs_of, load_session
from service.model.manifest import Manifest
from service.model.suitability import check_settings, drawbacks
from service.settings import Settings
from tests.service import tiny_model


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_model(tiny_model.write(tmp_path)).manifest


def test_float32_model_of_standard_operators_suits_every_device(manifest: Manifest) -> None:
    assert [drawbacks(manifest, device) for device in ("cpu", "cuda:1", "tensorrt")] == [[], [], []]


def test_float16_model_is_no_gain_on_the_cpu_alone(manifest: Manifest) -> None:
    model = manifest.model_copy(update={"precision": "fp16"})
    (sentence,) = drawbacks(model, "cpu")
    assert "no faster here than float32" in sentence
    assert drawbacks(model, "cuda") == drawbacks(model, "tensorrt:1") == []


def test_operators_that_tensorrt_lacks_are_named_there_alone(manifest: Manifest) -> None:
    model = manifest.model_copy(update={"contrib_operators": ("MultiHeadAttention",)})
    (sentence,) = drawbacks(model, "tensorrt:1")
    assert "(MultiHeadAttention)" in sentence
    assert "--target tensorrt" in sentence
    assert drawbacks(model, "cpu") == drawbacks(model, "cuda") == []


def test_loading_warns_of_a_drawback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = open_model(tiny_model.write(tmp_path))
    (graph, *_) = graphs_of(model, Settings(), buckets=(1,))
    load_session(model, graph, device="cpu", settings=Settings(threads=1))
    assert not caplog.records
    path = model.path / "manifest.json"
    path.write_text(path.read_text().replace('"precision": "fp32"', '"precision": "fp16"'))
    with caplog.at_level(logging.WARNING):
        load_session(open_model(model.path), graph, device="cpu", settings=Settings(threads=1))
    assert "is float16, which the CPU computes as float32" in caplog.text


def test_manifest_without_the_newer_fields_is_read(tmp_path: Path, manifest: Manifest) -> None:
    older = manifest.model_dump(exclude={"target", "contrib_operators", "outputs"})
    outputs = [record.model_dump(exclude={"rms_difference"}) for record in manifest.outputs]
    assert Manifest.model_validate({**older, "outputs": outputs}) == manifest


def test_settings_that_name_outputs_which_a_model_lacks_are_refused_by_their_option(manifest: Manifest) -> None:
    check_settings(manifest, Settings(v2_outputs=("embedding", "logits")))
    with pytest.raises(SettingsError, match=r"--v2-outputs: 'tiny' version 3: the model has no 'depth'; it has logits"):
        check_settings(manifest, Settings(v2_outputs=("logits", "depth")))
