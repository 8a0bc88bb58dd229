"""The comparison notices what is wrong, and says in which output."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.errors import ExportError
from export.graph import OUTPUT_NAMES
from export.verify import VerificationFailed, compare, differences_table, sample_images, verify
from models.dat import DAT
from tests.export.conftest import NORMALISATION, Exported
from tests.export.networks import SIZE


@pytest.fixture
def model(first_exported: Exported) -> DAT:
    return first_exported.model


@pytest.fixture
def graph(first_exported: Exported) -> onnx.ModelProto:
    return first_exported.graph


def saved(graph: onnx.ModelProto, path: Path) -> Path:
    onnx.save(graph, path)
    return path


def with_scaled_initializer(graph: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    (tensor,) = (each for each in changed.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return changed


def test_faithful_graph_passes_with_its_differences(graph: onnx.ModelProto, model: DAT, tmp_path: Path) -> None:
    differences = verify(saved(graph, tmp_path / "model.onnx"), model, NORMALISATION, image_sizes=[SIZE])
    assert [difference.name for difference in differences] == list(OUTPUT_NAMES)
    assert all(0 <= difference.max_abs <= difference.allowed for difference in differences)


def test_changed_head_fails_in_the_logits_alone(graph: onnx.ModelProto, model: DAT, tmp_path: Path) -> None:
    path = saved(with_scaled_initializer(graph, "model.cls_head.bias", 1.05), tmp_path / "model.onnx")
    with pytest.raises(VerificationFailed, match="logits") as failure:
        verify(path, model, NORMALISATION, image_sizes=[SIZE])
    assert [each.name for each in failure.value.differences if not each.passes] == ["logits"]


def test_other_normalisation_than_the_graphs_fails(graph: onnx.ModelProto, model: DAT, tmp_path: Path) -> None:
    other = NORMALISATION._replace(mean=(0.5, 0.5, 0.5))
    with pytest.raises(VerificationFailed):
        verify(saved(graph, tmp_path / "model.onnx"), model, other, image_sizes=[SIZE])


def test_missing_output_is_an_error(graph: onnx.ModelProto, model: DAT, tmp_path: Path) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    del changed.graph.output[-1]
    with pytest.raises(ExportError, match="logits, embedding, stage1, stage2, stage3 "):
        verify(saved(changed, tmp_path / "model.onnx"), model, NORMALISATION, image_sizes=[SIZE])


def test_nan_never_passes() -> None:
    reference = np.ones((1, 3), np.float32)
    difference = compare("logits", np.array([[1, np.nan, 1]], np.float32), reference)
    assert not difference.passes
    assert "too large" in differences_table([difference])


@pytest.mark.parametrize("actual", [np.ones((1, 3), np.float16), np.ones((2, 3), np.float32)])
def test_another_shape_or_type_is_an_error(actual: np.ndarray) -> None:
    with pytest.raises(ExportError, match=r"float32 \(1, 3\)"):
        compare("logits", actual, np.ones((1, 3), np.float32))


def test_sample_images_are_seeded_and_use_the_range() -> None:
    images = sample_images(1, 2, 40, 50)
    assert (images.shape, images.dtype) == ((2, 40, 50, 3), np.uint8)
    assert np.array_equal(images, sample_images(1, 2, 40, 50))
    assert not np.array_equal(images, sample_images(2, 2, 40, 50))
    assert images.min() < 32
    assert images.max() > 224
    assert len(np.unique(images)) > 200


def test_telemetry_of_the_runtime_is_off() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
