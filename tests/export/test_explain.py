"""`explain.onnx`: its positions and attention are the model's own, and it leaves `model.onnx` alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export import pipeline
from export.__main__ import main
from export.errors import ExportError
from export.explain import ExplainModel, explain_record, output_names, reference_explanations, verify_explain
from export.graph import Normalisation, export_graph
from export.sampling import select_strategy
from export.targets import TARGETS
from export.verify import TOLERANCES, Difference, VerificationFailed, open_session, sample_images
from models.dat import DAT
from models.demo.train import WEIGHTS_FILE
from models.variants import VARIANTS
from service.errors import RepositoryError
from service.http.openapi.examples import MANIFEST_FILE as EXAMPLE
from service.model.directory import ModelDirectory, open_model
from service.model.manifest import EXPLAIN_FILE, MANIFEST_FILE, MODEL_FILE
from tests.conftest import ExportOnce
from tests.export.conftest import NORMALISATION, ExplainNetwork, Exported
from tests.export.networks import NETWORKS, SIZE, dynamic, first_generation
from tests.golden import synthetic
from tests.golden_files import PARITY_TOLERANCE, golden_files, golden_model, synthetic_model
from tests.json_keys import keys

TOLERANCE = TOLERANCES["fp32"]
GOLDEN = {golden.id: golden for golden in golden_files()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_layer_is_explained_as_torch_computes_it(name: str, explained_network: ExplainNetwork) -> None:
    model, graph, path = explained_network(name)
    assert_explained(model, graph, path)


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_tuned_for_the_cpu_is_explained_as_torch_computes_it(name: str, tmp_path: Path) -> None:
    model = synthetic_model(NETWORKS[name](), SIZE)
    graph = explain_graph_of(model, tmp_path / "explain.onnx", sampling="separable", tuned_for_cpu=True)
    assert_explained(model, graph, tmp_path / "explain.onnx")


def assert_explained(model: DAT, graph: onnx.ModelProto, path: Path) -> None:
    differences = verify_explain(path, model, NORMALISATION, image_sizes=[SIZE])
    assert [each.name for each in differences] == list(output_names(model))
    assert all(each.max_abs <= 1e-4 for each in differences)
    assert {weight.data_type for weight in graph.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    record = explain_record(model, SIZE, differences)
    outputs = open_session(path).run(None, {"image": sample_images(5, 2, *SIZE)})
    assert [(name, values.shape[1:]) for name, values in zip(output_names(model), outputs, strict=True)] == list(
        record.outputs
    )
    for attention in outputs[1::2]:
        np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)


def explain_graph_of(
    model: DAT,
    path: Path,
    *,
    sampling: str = "gridsample",
    tuned_for_cpu: bool = False,
    normalisation: Normalisation = NORMALISATION,
) -> onnx.ModelProto:
    graph = export_graph(
        model,
        normalisation,
        strategy=select_strategy(sampling, 18),
        opset=18,
        example_size=SIZE,
        tuned_for_cpu=tuned_for_cpu,
        output_names=output_names(model),
        front=ExplainModel,
    )
    onnx.save(graph, path)
    return graph


@pytest.fixture(scope="module")
def first(explained_network: ExplainNetwork) -> Exported:
    """The small first-generation network with its graph."""
    return explained_network("first_generation")


def test_groups_attention_is_the_mean_of_its_heads(first: Exported) -> None:
    model, _, _ = first
    images = sample_images(1, 2, *SIZE)
    told = dict(zip(output_names(model), reference_explanations(model, NORMALISATION, images), strict=True))
    mean, std = (np.array(values, np.float32) for values in NORMALISATION)
    normalised = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        output = model(torch.from_numpy(normalised.astype(np.float32)), with_attention=True)
    of_heads, of_last = (sampling.attention.numpy() for sampling in output.sampling if sampling.attention is not None)
    np.testing.assert_allclose(
        told["attention0"][:, 1], (of_heads[:, 2] + of_heads[:, 3]) / 2, atol=1e-5
    )  # 4 heads, 2 groups
    np.testing.assert_allclose(told["attention1"], of_last, atol=1e-5)  # a group a head


def test_nothing_after_the_last_attention_is_in_the_graph(first: Exported) -> None:
    _, graph, _ = first
    names = {weight.name for weight in graph.graph.initializer}
    assert not {
        name for name in names if "cls_" in name or "stages.3.mlps" in name or "stages.3.attns.0.proj_v" in name
    }
    assert {name for name in names if "stages.3.attns.0.proj_k" in name}


@pytest.mark.full
def test_dynamic_model_is_explained_at_other_sizes_too(tmp_path: Path) -> None:
    path = tmp_path / "explain.onnx"
    model = synthetic_model(dynamic(), None)
    explain_graph_of(model, path)
    sizes = [(64, 64), (33, 33), (97, 64)]
    differences = verify_explain(path, model, NORMALISATION, image_sizes=sizes, batch_sizes=[1, 2])
    record = explain_record(model, SIZE, differences)
    for height, width in sizes:
        outputs = open_session(path).run(None, {"image": sample_images(1, 1, height, width)})
        told = record.at(height, width).outputs
        assert [shape for _, shape in told] == [values.shape[1:] for values in outputs]


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_of_every_kind_of_layer_follow_from_what_is_recorded(name: str) -> None:
    model = synthetic_model(NETWORKS[name](), SIZE)
    record = explain_record(model, SIZE, [Difference(each, 0.0, 0.0, 1.0, TOLERANCE) for each in output_names(model)])
    assert record.tells_other_sizes
    assert record.at(*SIZE) == record


def test_graph_of_other_weights_or_outputs_is_refused(first: Exported, first_exported: Exported) -> None:
    path = first.path
    other = synthetic_model(first_generation(), SIZE, seed=2)
    with pytest.raises(VerificationFailed, match="attention0"):
        verify_explain(path, other, NORMALISATION, image_sizes=[SIZE])
    with pytest.raises(ExportError, match="position0, attention0"):
        verify_explain(first_exported.path, other, NORMALISATION, image_sizes=[SIZE])


@pytest.fixture(scope="module")
def pair(exported: ExportOnce, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelDirectory, ModelDirectory]:
    """The demo, exported by the command with explain.onnx and without."""
    root = tmp_path_factory.mktemp("explain")
    assert main(["dat_demo", "--weights", str(WEIGHTS_FILE), "--repository", str(root), "--no-explain"]) == 0
    return open_model(exported("dat_demo") / "dat_demo" / "1"), open_model(root / "dat_demo" / "1")


def test_model_itself_is_the_same_byte_for_byte(pair: tuple[ModelDirectory, ModelDirectory]) -> None:
    explained, plain = pair
    assert explained.model_path.read_bytes() == plain.model_path.read_bytes()
    assert explained.manifest.files[MODEL_FILE] == plain.manifest.files[MODEL_FILE]
    assert explained.manifest.outputs == plain.manifest.outputs


def test_manifest_says_what_can_be_explained(pair: tuple[ModelDirectory, ModelDirectory]) -> None:
    explained, plain = pair
    record = explained.manifest.explain
    assert record is not None
    assert EXPLAIN_FILE in explained.manifest.files
    assert [(layer.name, layer.stage, layer.block, layer.groups, layer.points) for layer in record.layers] == [
        ("stages.1.attns.1", 2, 2, 2, 16),
        ("stages.2.attns.0", 3, 1, 2, 16),
        ("stages.2.attns.1", 3, 2, 2, 16),
        ("stages.3.attns.0", 4, 1, 4, 4),
    ]
    assert all(0 < layer.position_difference < 1e-4 for layer in record.layers)
    assert all(0 < layer.attention_difference < 1e-4 for layer in record.layers)
    session = open_session(explained.explain_path)
    assert [(output.name, tuple(output.shape[1:])) for output in session.get_outputs()] == list(record.outputs)
    assert plain.manifest.explain is None
    assert set(plain.manifest.files) == {"model.onnx", "labels.tsv"}
    assert not plain.explain_path.exists()


def test_manifest_in_the_interfaces_documentation_is_one_as_they_are_written_today(
    pair: tuple[ModelDirectory, ModelDirectory],
) -> None:
    """It is what `python -m export dat_tiny --target cpu` writes; where this fails, export it anew."""
    example = json.loads(EXAMPLE.read_text())
    assert keys(example) == keys(json.loads((pair[0].path / MANIFEST_FILE).read_text()))
    target, config = TARGETS["cpu"], VARIANTS["dat_tiny"].config
    assert (example["opset"], example["sampling"], example["target"]) == (target.opset, target.sampling, target.name)
    assert {output["name"]: output["shape"] for output in example["outputs"]} == {
        "logits": [config.num_classes],
        "embedding": [config.stages[-1].dim],
        **{
            f"stage{number}": [stage.dim, 224 >> (number + 1), 224 >> (number + 1)]
            for number, stage in enumerate(config.stages, start=1)
        },
    }


def test_manifest_from_before_there_were_explanations_is_read(
    pair: tuple[ModelDirectory, ModelDirectory], tmp_path: Path
) -> None:
    _, plain = pair
    directory = copy_of(plain, tmp_path)
    manifest = json.loads((directory / MANIFEST_FILE).read_text())
    del manifest["explain"]
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert open_model(directory).manifest.explain is None


@pytest.mark.parametrize("lost", ["explain", "files"])
def test_manifest_that_tells_half_of_it_is_refused(
    pair: tuple[ModelDirectory, ModelDirectory], tmp_path: Path, lost: str
) -> None:
    directory = copy_of(pair[0], tmp_path)
    manifest = json.loads((directory / MANIFEST_FILE).read_text())
    if lost == "explain":
        del manifest["explain"]
    else:
        del manifest["files"][EXPLAIN_FILE]
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match=r"explain\.onnx"):
        open_model(directory)


def copy_of(model: ModelDirectory, root: Path) -> Path:
    directory = root / model.path.parent.name / model.path.name
    directory.mkdir(parents=True)
    for path in model.path.iterdir():
        shutil.copy(path, directory)
    return directory


def test_export_whose_explanations_are_wrong_leaves_nothing_behind(
    pair: tuple[ModelDirectory, ModelDirectory],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, explain = (onnx.load(path) for path in (pair[0].model_path, pair[0].explain_path))
    (bias,) = (weight for weight in explain.graph.initializer if weight.name.endswith("stages.1.attns.1.proj_q.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    monkeypatch.setattr(pipeline, "export_graph", lambda *_, **__: model)
    monkeypatch.setattr(pipeline, "explain_graph", lambda *_: explain)
    arguments = ["dat_demo", "--weights", str(WEIGHTS_FILE), "--repository", str(tmp_path / "models")]
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert "attention0" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["dat_tiny", pytest.param("dat_pp_tiny", marks=pytest.mark.full)])
def test_positions_are_those_of_the_published_code(name: str, exported: ExportOnce, tmp_path: Path) -> None:
    golden = GOLDEN[f"{name}-224x224"]
    expected, variant, model = golden.arrays(), VARIANTS[name], golden_model(golden)
    if name == "dat_tiny":
        path = exported(name) / name / "1" / EXPLAIN_FILE
    else:
        path = tmp_path / EXPLAIN_FILE
        explain_graph_of(model, path, normalisation=Normalisation(variant.mean, variant.std))
    images = synthetic.images(golden.seed, 2, golden.height, golden.width)
    computed = open_session(path).run(None, {"image": images})
    assert list(model.deformable_layers) == expected["layers"].tolist()
    for layer, position, attention in zip(model.deformable_layers, computed[::2], computed[1::2], strict=True):
        published = expected[f"position/{layer}"]  # of the first image
        np.testing.assert_allclose(
            position[: len(published)].reshape(published.shape), published, atol=PARITY_TOLERANCE, rtol=0
        )
        np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
