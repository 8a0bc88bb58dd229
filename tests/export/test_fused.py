"""The graph of operators of our own: what becomes what, that it computes what torch computes, what is refused."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export.__main__ import main
from export.calibration import service_preprocessing
from export.errors import ExportError
from export.fused import operators_of, verify_fused
from export.graph import OUTPUT_NAMES
from export.job import ExportJob, check_job
from export.operator_library import operator_library
from export.targets import TARGETS
from export.verify import VerificationFailed, open_session, sample_images
from models.demo.digits import training_and_held_out
from models.variants import VARIANTS
from operators import DOMAIN, VERSION
from service.images.preprocessing import decode_into, prepare_pillow
from service.model.directory import open_model
from tests.export.conftest import NORMALISATION, Exported, FuseNetwork
from tests.export.networks import NETWORKS, SIZE

OPERATORS = {
    # windows in three layers; one norm in the middle of each block, one between the two of a stage, and the last
    "first_generation": {
        "PatchEmbedding": 1, "WindowAttention": 3, "SampleFeatures": 2, "DeformableAttention": 2,
        "SamplingPositions": 2, "ResidualLayerNorm": 7, "BiasGelu": 5,
    },
    # one table among four kinds of bias; the other layers' features are sampled all the same
    "first_generation_biases": {
        "PatchEmbedding": 1, "SampleFeatures": 4, "DeformableAttention": 1, "ResidualLayerNorm": 5, "BiasGelu": 4,
    },
    # five MLPs, and five perception units, of which the one within a stage takes the sum before it and the norm behind
    "second_generation": {
        "PatchEmbedding": 1, "NeighborhoodAttention": 2, "SampleFeatures": 3, "DeformableAttention": 3,
        "SamplingPositions": 3, "DepthwiseConvolution": 9, "PerceptionNorm": 1, "ResidualLayerNorm": 6,
    },
    # pooled keys, and biases that are no tables
    "second_generation_biases": {
        "PatchEmbedding": 1, "WindowAttention": 2, "SampleFeatures": 3, "ResidualLayerNorm": 9, "BiasGelu": 6,
    },
}  # fmt: skip
SOFTMAX_LEFT = {"first_generation_biases": 3, "second_generation_biases": 4}
IN_EVERY_RUN = ("first_generation", "second_generation")


def one_node() -> bytes:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [2, 8]) for name in "xy"]
    bias = onnx.helper.make_tensor("bias", onnx.TensorProto.FLOAT16, [8], [0.0] * 8)
    node = onnx.helper.make_node("BiasGelu", ["x", "bias"], ["y"], domain=DOMAIN)
    graph = onnx.helper.make_graph([node], "one", value[:1], value[1:], [bias])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    made: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.full) for name in NETWORKS]
)
def fused(request: pytest.FixtureRequest, fused_network: FuseNetwork) -> Exported:
    return fused_network(request.param)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.full) for name in NETWORKS]
)
def test_every_place_of_a_pattern_is_its_operator(name: str, fused_network: FuseNetwork) -> None:
    graph = fused_network(name).graph
    assert operators_of(graph) == Counter(OPERATORS[name])
    left = Counter(node.op_type for node in graph.graph.node if node.domain == "")
    assert left["Softmax"] == SOFTMAX_LEFT.get(name, 0)
    assert not {"Pad", "Gather", "GridSample", "Split", "Shape"} & left.keys()
    if name not in SOFTMAX_LEFT:
        assert left["Cast"] == 5  # the pooled vector and the four maps


def test_it_computes_what_torch_computes(fused: Exported, library: Path) -> None:
    differences = verify_fused(fused.path, library, fused.model, NORMALISATION)
    assert tuple(each.name for each in differences) == OUTPUT_NAMES
    assert all(each.share <= 0.6 for each in differences)


def test_batch_is_any_and_images_do_not_meet(fused: Exported, library: Path) -> None:
    session = open_session(fused.path, library)
    images = sample_images(5, 5, *SIZE)
    together = session.run(None, {"image": images})
    alone = session.run(None, {"image": images[3:4]})
    for name, all_, one in zip(OUTPUT_NAMES, together, alone, strict=True):
        np.testing.assert_allclose(all_[3:4], one, atol=2e-2 * all_.std(), err_msg=name)


@pytest.mark.parametrize(
    ("operator", "attribute", "value"), [("WindowAttention", "shift", 0), ("DeformableAttention", "generation", 2)]
)
def test_another_computation_is_not_let_through(
    operator: str, attribute: str, value: int, fused_network: FuseNetwork, library: Path, tmp_path: Path
) -> None:
    model, graph, _ = fused_network("first_generation")
    for node in graph.graph.node:
        for entry in node.attribute:
            if (node.op_type, entry.name) == (operator, attribute):
                entry.i = value
    onnx.save(graph, tmp_path / "altered.onnx")
    with pytest.raises(VerificationFailed, match="too large"):
        verify_fused(tmp_path / "altered.onnx", library, model, NORMALISATION)


def test_command_writes_both_graphs_and_the_manifest_tells_of_them(fused_demo: Path) -> None:
    model = open_model(fused_demo)
    manifest = model.manifest
    assert set(manifest.files) == {"model.onnx", "fused.onnx", "labels.tsv"}
    assert {node.domain for node in onnx.load(model.model_path).graph.node} == {""}
    graph = onnx.load(model.fused_path)
    assert manifest.fused is not None
    assert manifest.fused.operators == tuple(sorted(operators_of(graph)))
    assert manifest.fused.operators_version == VERSION
    assert {"NeighborhoodAttention", "DeformableAttention", "ResidualLayerNorm"} <= set(manifest.fused.operators)
    for record, output in zip(manifest.fused.outputs, manifest.outputs, strict=True):
        assert record.name == output.name
        assert 0 < record.rms_difference <= 1e-2 * output.reference_std
    standard = onnx.load(model.model_path).graph
    assert list(graph.graph.input) == list(standard.input)
    assert [value.name for value in graph.graph.output] == [value.name for value in standard.output]


def test_demo_reads_the_digits_that_it_never_saw(fused_demo: Path, library: Path) -> None:
    prepare_pillow()
    digits, model = training_and_held_out()[1], open_model(fused_demo)
    preprocess, size = model.manifest.preprocess, (model.manifest.input.height, model.manifest.input.width)
    preprocessing = service_preprocessing((preprocess.resize_height, preprocess.resize_width), size)
    pixels = np.empty((len(digits.images), *size, 3), np.uint8)
    for image, into in zip(digits.images, pixels, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        decode_into(file.getvalue(), into, preprocessing)
    (logits,) = open_session(model.fused_path, library).run(["logits"], {"image": pixels})
    assert np.mean(logits.argmax(1) == digits.classes) >= 0.97


def job(target: str = "cuda", variant: str = "dat_demo", precision: str = "fp16", **changes: object) -> ExportJob:
    return ExportJob(
        variant=VARIANTS[variant], repository=Path("unused"), seed=1, target=TARGETS[target], precision=precision,
        fused=True, **changes,
    )  # type: ignore[arg-type]  # a job of these fields  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_fused_at_its_own_size(variant: str) -> None:
    side = VARIANTS[variant].input_size
    check_job(job(variant=variant))
    check_job(job(variant=variant, image_size=(side, side)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (job("cpu"), r"--target cuda.*cpu"),
        (job("tensorrt"), r"--target cuda.*tensorrt"),
        (job(precision="fp32"), r"--precision fp16.*fp32"),
        (job(dynamic_size=True), r"one size.*--dynamic-size"),
        (job(image_size=(96, 64)), r"dat_demo.*64x64.*--image-size"),
        (job(variant="dat_tiny", window=14), r"dat_tiny.*224x224.*--window-size"),
    ],
)
def test_what_has_no_kernels_is_refused_at_once(asked: ExportJob, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        check_job(asked)


def test_operators_of_our_own_are_for_fused_graphs_alone() -> None:
    graph = onnx.load_from_string(one_node())
    TARGETS["cuda"].check(graph, fused=True)
    with pytest.raises(ExportError, match="cuda has no operators dat::BiasGelu"):
        TARGETS["cuda"].check(graph)
    with pytest.raises(ExportError, match="cpu has no operators dat::BiasGelu"):
        TARGETS["cpu"].check(graph, fused=True)


def test_without_library_and_compiler_the_export_says_what_is_missing_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dat_operators", None)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ExportError, match=r"dat_operators.*no-such-compiler"), operator_library():
        pass
    form = ["--target", "cuda", "--precision", "fp16", "--fused"]
    assert main(["dat_demo", "--random-weights", "0", *form, "--repository", str(tmp_path / "models")]) == 1
    said = capsys.readouterr().err
    assert "dat_operators" in said
    assert "no-such-compiler" in said
    assert "loading" not in said
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("version", [VERSION, VERSION + 1])
def test_an_installed_library_is_taken_if_it_is_of_the_version(
    version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dat_operators.py").write_text(
        f"from pathlib import Path\n\nVERSION = {version}\n\n\n"
        "def library():\n    return Path(__file__).with_name('its.so')\n"
    )
    monkeypatch.setitem(sys.modules, "dat_operators", None)  # restored afterwards, whatever is imported here
    del sys.modules["dat_operators"]
    monkeypatch.syspath_prepend(tmp_path)
    if version == VERSION:
        with operator_library() as path:
            assert path == tmp_path / "its.so"
    else:
        with pytest.raises(ExportError, match=rf"version {version} .*version {VERSION}"), operator_library():
            pass
