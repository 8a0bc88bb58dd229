"""What a manifest says of a model's outputs, also where it was written before that was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import RepositoryError
from service.model.directory import open_model
from service.model.explain_record import ExplainLayerRecord
from service.model.manifest import Manifest, unknown_outputs
from tests.service import tiny_model

OLDER = Path(__file__).parent / "older_manifests"
"""As the exporter wrote them before outputs had a kind, a stride and classes."""
STRIDES = {"stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    path = tiny_model.write(tmp_path) / "manifest.json"
    parsed: dict[str, Any] = json.loads(path.read_text())
    return parsed


def output_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(output for output in document["outputs"] if output["name"] == name)
    return found


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "fixed_size",
            {
                "logits": (10,), "embedding": (128,),
                "stage1": (16, 16, 16), "stage2": (32, 8, 8), "stage3": (64, 4, 4), "stage4": (128, 2, 2),
            },
        ),
        (
            "dynamic_size",
            {
                "logits": (1000,), "embedding": (512,),
                "stage1": (64, 56, 56), "stage2": (128, 28, 28), "stage3": (256, 14, 14), "stage4": (512, 7, 7),
            },
        ),
    ],
)  # fmt: skip
def test_older_manifest_has_the_facts_that_were_not_written(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    text = (OLDER / f"{name}.json").read_text()
    assert not {"kind", "stride", "classes"} & json.loads(text)["outputs"][0].keys()
    manifest = Manifest.model_validate_json(text)
    assert manifest.task == "classification"
    assert (manifest.class_output, manifest.vectors) == ("logits", ("logits", "embedding"))
    assert {record.name: record.stride for record in manifest.outputs if record.kind == "map"} == STRIDES
    assert manifest.shapes == shapes
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_facts_are_those_that_are_written(document: dict[str, Any]) -> None:
    output_of(document, "logits")["name"] = "scores"
    output_of(document, "stage1")["name"] = "fine"
    manifest = Manifest.model_validate(document)
    assert (manifest.class_output, manifest.vectors) == ("scores", ("scores", "embedding"))
    assert manifest.output_names[2] == "fine"
    assert manifest.shapes["fine"] == (3, 14, 14)
    assert manifest.output("fine").shape_at(57, 61) == (3, 15, 16)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("embedding", {"kind": "map"}, "embedding is a map, which has not the shape"),
        ("stage1", {"kind": "vector", "stride": None}, "stage1 is a vector, which has not the shape"),
        ("stage1", {"stride": None}, "a map has a stride"),
        ("embedding", {"stride": 4}, "and a vector none"),
        ("stage1", {"stride": 8}, r"stage1 has the shape \(3, 14, 14\), and its stride makes it \(3, 7, 7\)"),
        ("stage1", {"shape": [3, 14, 15]}, r"has the shape \(3, 14, 15\)"),
        ("stage1", {"shape": [3, 14]}, "outputs.2.shape"),
        ("embedding", {"classes": True}, "embedding has 3 channels for 7 classes"),
        ("logits", {"classes": False}, "one output whose values are one a class"),
        ("logits", {"shape": [8]}, "8 channels for 7 classes"),
    ],
)
def test_facts_that_contradict_the_shapes_are_refused(
    tmp_path: Path, name: str, change: dict[str, Any], reason: str
) -> None:
    path = tiny_model.write(tmp_path) / "manifest.json"
    document = json.loads(path.read_text())
    output_of(document, name).update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(RepositoryError, match=reason):
        open_model(path.parent)


@pytest.mark.parametrize("change", [{"height": None}, {"name": "picture"}])
def test_older_manifest_whose_input_is_at_fault_names_that_alone(change: dict[str, Any]) -> None:
    document = json.loads((OLDER / "fixed_size.json").read_text())
    document["input"].update(change)
    with pytest.raises(ValidationError) as refused:
        Manifest.model_validate(document)
    assert {problem["loc"][0] for problem in refused.value.errors()} == {"input"}


def test_a_task_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = tiny_model.write(tmp_path) / "manifest.json"
    path.write_text(path.read_text().replace('"task": "classification"', '"task": "detection"'))
    with pytest.raises(RepositoryError, match="task: Input should be 'classification'"):
        open_model(path.parent)


def test_outputs_that_a_model_lacks_are_named_beside_those_that_it_has() -> None:
    assert unknown_outputs(["b", "a"], ("a", "b")) is None
    assert unknown_outputs(["c", "a", "d", "c"], ("a", "b")) == "the model has no 'c', 'd'; it has a, b"


def dynamic(document: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """The document of the same model for any size, as it was written before `min_side` and `max_side`."""
    document["input"] = {**document["input"], "dynamic_size": True, "height": 64, "width": 64, **facts}
    for output in document["outputs"]:
        if output["kind"] == "map":
            output["shape"] = [output["shape"][0], None, None]
    del document["explain"], document["files"]["explain.onnx"]
    return document


@pytest.mark.parametrize(
    ("size", "refusal"),
    [
        ((64, 64), None),
        ((33, 2048), None),
        ((32, 64), "sides from 33 to 2048 pixels are taken"),
        ((64, 2049), "sides from 33 to 2048 pixels are taken"),
    ],
)
def test_a_dynamic_model_says_which_sizes_it_takes(
    document: dict[str, Any], size: tuple[int, int], refusal: str | None
) -> None:
    image = Manifest.model_validate(dynamic(document, size_multiple=1, min_side=33, max_side=2048)).input
    assert image.refusal(*size) == refusal


def test_of_an_older_dynamic_model_sizes_from_its_own_up_are_known_in_steps_of_32(document: dict[str, Any]) -> None:
    for fact in ("min_side", "max_side"):
        document["input"].pop(fact, None)
    image = Manifest.model_validate(dynamic(document)).input
    assert image.refusal(96, 64) is None
    assert (
        image.refusal(32, 64)
        == image.refusal(65, 64)
        == ("sides from 64 to 2048 pixels that are multiples of 32 are taken")
    )


def test_a_fixed_model_takes_its_own_size_alone(document: dict[str, Any]) -> None:
    image = Manifest.model_validate(document).input
    assert image.refusal(56, 56) is None
    assert image.refusal(56, 64) == "images of 56x56 pixels are taken, and no others"


def test_a_dynamic_model_that_does_not_take_its_own_size_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="64x64 is none of those that it takes"):
        Manifest.model_validate(dynamic(document, min_side=65))


def test_a_layer_says_what_it_is_at_another_size() -> None:
    layer = ExplainLayerRecord(
        name="stages.0.attns.1", stage=1, block=2, groups=2, key_rows=7, key_columns=7, query_rows=56, query_columns=56,
        stride=4, key_window=9, key_stride=8, key_padding=4, position_difference=0.0, attention_difference=0.0,
    )  # fmt: skip
    assert layer.at(224, 224) == layer
    other = layer.at(33, 300)
    assert (other.query_rows, other.query_columns) == (9, 75)
    assert (other.key_rows, other.key_columns) == (2, 10)
    older = layer.model_copy(update={"stride": None})
    assert not older.tells_other_sizes
    with pytest.raises(ValueError, match=r"stages\.0\.attns\.1: the manifest does not tell"):
        older.at(33, 300)


def test_a_layer_whose_sizes_are_not_those_of_its_strides_is_refused(document: dict[str, Any]) -> None:
    document["explain"]["layers"][0].update(stride=14, key_window=3, key_stride=2, key_padding=0)
    with pytest.raises(ValidationError, match=r"stages\.2\.attns\.0 are not those"):
        Manifest.model_validate(document)


def fused(document: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """The document of the same model with a graph of the library's operators."""
    outputs = [
        {"name": output["name"], "max_abs_difference": 0.0, "rms_difference": 0.0} for output in document["outputs"]
    ]
    record = {"operators": ["BiasGelu"], "operators_version": 1, "outputs": outputs}
    return document | {
        "fused": record | facts,
        "files": document["files"] | {"fused.onnx": document["files"]["model.onnx"]},
    }


def test_a_fused_graph_is_told_with_its_operators(document: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(fused(document))
    assert manifest.fused is not None
    assert (manifest.fused.operators, manifest.fused.operators_version) == (("BiasGelu",), 1)


def test_a_fused_graph_has_its_file_and_the_outputs_of_the_model(document: dict[str, Any]) -> None:
    without_file = fused(document) | {"files": document["files"]}
    with pytest.raises(ValidationError, match=r"fused and the record of fused\.onnx go together"):
        Manifest.model_validate(without_file)
    with pytest.raises(ValidationError, match="fused: its outputs should be logits"):
        Manifest.model_validate(fused(document, outputs=[]))


@pytest.mark.parametrize("name", ["..", "", "../up", "a/b", "a\0b", "a\n", ".hidden", "manifest.json"])
def test_a_file_that_could_lie_elsewhere_is_refused(document: dict[str, Any], name: str) -> None:
    document["files"][name] = document["files"]["labels.tsv"]
    with pytest.raises(ValidationError, match="is not the name of a file in a model directory"):
        Manifest.model_validate(document)
