"""The command as users run it, through `main`, with the demo variant and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import pipeline
from export.__main__ import main
from export.graph import OUTPUT_NAMES, Normalisation, export_graph
from export.manifest import resized
from export.sampling import select_strategy
from export.source import from_seed
from export.verify import TOLERANCES, Difference, open_session
from models.variants import VARIANTS
from service.model.directory import find_models, open_model
from service.model.manifest import MANIFEST_FILE

DEMO = VARIANTS["dat_demo"]
DEMO_SIZE = (DEMO.input_size, DEMO.input_size)


def export(*arguments: object, repository: Path) -> int:
    """Run the command, without the graph of `test_explain`."""
    return main([*map(str, arguments), "--no-explain", "--repository", str(repository)])


def everything(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.fixture(scope="module")
def demo_graph() -> onnx.ModelProto:
    """The graph of the demo variant with random weights of seed 0."""
    model = from_seed(0, DEMO.config, image_size=DEMO_SIZE).model
    strategy = select_strategy("separable", 18)
    return export_graph(model, Normalisation(DEMO.mean, DEMO.std), strategy=strategy, opset=18, example_size=DEMO_SIZE)


@pytest.fixture
def exported_before(monkeypatch: pytest.MonkeyPatch, demo_graph: onnx.ModelProto) -> None:
    """Let the command find its graph of seed 0 traced already."""
    monkeypatch.setattr(pipeline, "export_graph", lambda *_, **__: demo_graph)


@pytest.mark.usefixtures("exported_before")
def test_export_makes_a_directory_that_the_service_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "models"
    assert export("dat_demo", "--random-weights", 0, "--name", "digits", repository=repository) == 0
    printed = capsys.readouterr()
    path = repository / "digits" / "1"
    assert printed.out == f"{path}\n"
    for step in ("loading dat_demo", "exporting the graph", "verifying against torch", "stage4"):
        assert step in printed.err
    assert everything(repository) == [
        "digits",
        "digits/1",
        "digits/1/labels.tsv",
        "digits/1/manifest.json",
        "digits/1/model.onnx",
    ]

    opened = open_model(path)
    manifest = opened.manifest
    assert (manifest.variant, manifest.name, manifest.version) == ("dat_demo", "digits", 1)
    assert (manifest.precision, manifest.opset, manifest.sampling) == ("fp32", 18, "separable")
    assert (manifest.input.height, manifest.input.width) == DEMO_SIZE
    assert (manifest.preprocess.resize_height, manifest.preprocess.resize_width) == (DEMO.resize, DEMO.resize)
    assert manifest.weights_source == "random weights of seed 0"
    assert manifest.verification.batch_sizes == (1, 2, 3)
    assert set(manifest.exporter) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert [label.name for label in opened.labels] == list("0123456789")

    images = np.zeros((2, *DEMO_SIZE, 3), np.uint8)
    session = open_session(opened.model_path)
    outputs = dict(
        zip((each.name for each in session.get_outputs()), session.run(None, {"image": images}), strict=True)
    )
    assert {name: output.shape[1:] for name, output in outputs.items()} == {
        record.name: record.shape for record in manifest.outputs
    }
    assert (manifest.task, manifest.class_output, manifest.vectors) == (
        "classification", "logits", ("logits", "embedding"),
    )  # fmt: skip
    assert [record.stride for record in manifest.outputs if record.kind == "map"] == [4, 8, 16, 32]
    document = json.loads((opened.path / MANIFEST_FILE).read_text())
    assert {"kind", "stride", "classes"} <= document["outputs"][0].keys()


@pytest.mark.usefixtures("exported_before")
def test_float16_export_is_verified_by_its_own_bound_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = ("--precision", "fp16", "--target", "tensorrt")
    assert export("dat_demo", "--random-weights", 0, *form, repository=tmp_path) == 0
    assert "target tensorrt, opset 18, sampling separable, fp16" in capsys.readouterr().err
    opened = open_model(tmp_path / "dat_demo" / "1")
    manifest = opened.manifest
    assert (manifest.precision, manifest.target, manifest.contrib_operators) == ("fp16", "tensorrt", ())
    assert manifest.verification.tolerance == TOLERANCES["fp16"].rms
    for record in manifest.outputs:
        assert record.rms_difference is not None
        assert 0 < record.rms_difference <= 1e-2 * record.reference_std
        assert record.rms_difference < record.max_abs_difference
    graph = onnx.load(opened.model_path).graph
    assert {weight.data_type for weight in graph.initializer} >= {onnx.TensorProto.FLOAT16}


@pytest.mark.usefixtures("exported_before")
def test_float16_graph_beyond_its_bound_is_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "half", coarsened)
    assert export("dat_demo", "--random-weights", 0, "--precision", "fp16", repository=tmp_path / "models") == 1
    assert "too large" in capsys.readouterr().err
    assert everything(tmp_path) == []


def coarsened(graph: onnx.ModelProto, *_: object) -> onnx.ModelProto:
    """A graph whose weights keep three bits after the first."""
    coarse = onnx.ModelProto()
    coarse.CopyFrom(graph)
    for weight in coarse.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            mantissa, exponent = np.frexp(onnx.numpy_helper.to_array(weight))
            values = np.ldexp(np.round(mantissa * 16) / 16, exponent)
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
    return coarse


@pytest.mark.usefixtures("exported_before")
class TestRepository:
    def test_versions_count_up_and_are_never_overwritten(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(2):
            assert export("dat_demo", "--random-weights", 0, repository=tmp_path) == 0
        assert find_models(tmp_path) == {"dat_demo": (1, 2)}
        before = (tmp_path / "dat_demo" / "2" / "manifest.json").read_bytes()
        assert export("dat_demo", "--random-weights", 0, "--version", 2, repository=tmp_path) == 1
        assert "--version" in capsys.readouterr().err
        assert (tmp_path / "dat_demo" / "2" / "manifest.json").read_bytes() == before

    def test_labels_and_the_temperature_of_the_user_are_taken(self, tmp_path: Path) -> None:
        names = tmp_path / "names.txt"
        names.write_text("\n".join(f"digit {number}" for number in range(10)))
        given = ("--labels", names, "--temperature", 1.5)
        assert export("dat_demo", "--random-weights", 0, *given, repository=tmp_path) == 0
        exported = open_model(tmp_path / "dat_demo" / "1")
        assert (exported.labels[3].name, exported.manifest.temperature) == ("digit 3", 1.5)

    def test_graph_that_differs_from_the_model_is_not_published(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        repository = tmp_path / "models"
        assert export("dat_demo", "--random-weights", 1, repository=repository) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "logits" in printed.err
        assert everything(tmp_path) == []

    def test_interrupt_leaves_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "verify", interrupt)
        assert export("dat_demo", "--random-weights", 0, repository=tmp_path / "models") == 130
        assert "interrupted; nothing was written" in capsys.readouterr().err
        assert everything(tmp_path) == []

    def test_leftovers_of_a_killed_export_do_no_harm(self, tmp_path: Path) -> None:
        leftover = tmp_path / ".dat_demo-k1lled" / "dat_demo" / "1"
        leftover.mkdir(parents=True)
        (leftover / "model.onnx").write_bytes(b"half")
        assert export("dat_demo", "--random-weights", 0, repository=tmp_path) == 0
        assert find_models(tmp_path) == {"dat_demo": (1,)}

    def test_published_weights_of_the_demo_are_recorded_by_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alike = tuple(Difference(name, 0.0, 0.0, 1.0, TOLERANCES["fp32"]) for name in OUTPUT_NAMES)
        monkeypatch.setattr(pipeline, "verify", lambda *_, **__: alike)
        weights = Path("models/demo/dat_demo.safetensors")
        assert export("dat_demo", "--weights", weights, repository=tmp_path) == 0
        manifest = json.loads((tmp_path / "dat_demo" / "1" / "manifest.json").read_text())
        assert manifest["weights_source"] == "dat_demo.safetensors"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "dat_tiny, "),
        (("dat_huge",), "'dat_huge'"),
        (("dat_tiny",), "--weights FILE"),
        (("dat_tiny", "--weights", "nowhere.pth"), "nowhere.pth"),
        (("dat_tiny", "--random-weights", 0, "--weights-key", "ema"), "--weights-key"),
        (("dat_tiny", "--random-weights", 0, "--opset", 16), "opset 16"),
        (("dat_tiny", "--random-weights", 0, "--sampling", "magic"), "'magic'"),
        (("dat_tiny", "--random-weights", 0, "--target", "tensorrt", "--opset", 20), "not 20"),
        (("dat_tiny", "--random-weights", 0, "--image-size", 225), "225x225"),
        (("dat_tiny", "--random-weights", 0, "--image-size", "224x225"), "224x225"),
        (("dat_tiny", "--random-weights", 0, "--dynamic-size"), "second-generation"),
        (("dat_pp_tiny", "--random-weights", 0, "--window-size", 7), "window attention"),
        (("dat_pp_tiny", "--random-weights", 0, "--dynamic-size", "--image-size", 32), "33 or more"),
        (("dat_tiny", "--random-weights", 0, "--name", "../up"), "'../up'"),
        (("dat_tiny", "--random-weights", 0, "--version", 0), "version 0"),
        (("dat_tiny", "--random-weights", 0, "--temperature", 0), "--temperature 0 is not from"),
        (("dat_tiny", "--random-weights", 0, "--temperature", "nan"), "--temperature nan is not from"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    arguments: tuple[object, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(*arguments, repository=tmp_path) == 1
    printed = capsys.readouterr()
    (line,) = (line for line in printed.err.splitlines() if not line.startswith("loading"))
    assert line.startswith("error: ")
    assert named in line
    assert everything(tmp_path) == []


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"not a checkpoint")
    assert export("dat_demo", "--weights", weights, repository=tmp_path / "models") == 1
    assert "weights.pth" in capsys.readouterr().err
    assert everything(tmp_path) == ["weights.pth"]


@pytest.mark.usefixtures("exported_before")
def test_a_choice_among_weights_is_said_and_can_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = from_seed(0, DEMO.config, image_size=DEMO_SIZE).model.state_dict()  # those of the graph
    others = from_seed(1, DEMO.config, image_size=DEMO_SIZE).model.state_dict()
    torch.save({"state_dict": weights, "state_dict_ema": others}, tmp_path / "w.pth")
    assert export("dat_demo", "--weights", tmp_path / "w.pth", repository=tmp_path / "models") == 0
    assert "averages of them under 'state_dict_ema' can be had with --weights-key" in capsys.readouterr().err
    torch.save({"one": others, "other": weights}, tmp_path / "w.pth")
    assert export("dat_demo", "--weights", tmp_path / "w.pth", repository=tmp_path / "models") == 1
    assert "under 'one', 'other': choose with --weights-key" in capsys.readouterr().err
    chosen = ("--weights", tmp_path / "w.pth", "--weights-key", "other")
    assert export("dat_demo", *chosen, repository=tmp_path / "models") == 0
    assert find_models(tmp_path / "models") == {"dat_demo": (1, 2)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--image-size", "big"),
        ("--opset", "new"),
        ("--precision", "fp8"),
        ("--target", "tpu"),
        ("--weights", "a", "--sharp"),
    ],
)
def test_wrong_command_line_is_explained(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["dat_tiny", *arguments])
    assert exit_.value.code == 2
    assert "usage: python -m export" in capsys.readouterr().err


def test_list_shows_every_variant_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows.keys() == VARIANTS.keys()
    assert rows["dat_tiny"].split()[1:7] == ["28.3", "M", "224", "256", "82.034", "95.85"]
    assert rows["dat_base_384"].split()[3:5] == ["384", "438"]
    for name, variant in VARIANTS.items():
        assert rows[name].endswith(variant.weights)


def test_other_sizes_keep_the_published_ratio_of_resize_to_crop() -> None:
    assert resized(384, VARIANTS["dat_tiny"]) == 439
    assert resized(224, VARIANTS["dat_tiny"]) == 256
    assert resized(384, VARIANTS["dat_base_384"]) == 438
    assert resized(512, VARIANTS["dat_pp_base_384"]) == 512
