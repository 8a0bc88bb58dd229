"""int8 graphs: what becomes of which nodes, how near the answers stay, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

from export.__main__ import main
from export.calibration import MIN_PHOTOS, judge, photos, samples, service_preprocessing
from export.errors import ExportError
from export.graph import OUTPUT_NAMES
from export.quantization import quantize
from export.verify import open_session, sample_images
from models.demo.digits import training_and_held_out
from models.demo.train import WEIGHTS_FILE, enlarge
from service.model.directory import open_model
from tests.conftest import ExportOnce
from tests.export.conftest import NORMALISATION, Exported, ExportNetwork
from tests.export.networks import SIZE, second_generation


@pytest.fixture(scope="module")
def second_exported(exported_network: ExportNetwork) -> Exported:
    return exported_network("second_generation")


@pytest.fixture(scope="module")
def quantized(second_exported: Exported) -> onnx.ModelProto:
    return quantize(second_exported.graph, samples(SIZE).images)


def session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def save_photos(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(sample_images(5, count, 80, 100)):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder


def test_large_products_and_mlp_convolutions_alone_become_integer(
    second_exported: Exported, quantized: onnx.ModelProto
) -> None:
    operators = Counter(node.op_type for node in quantized.graph.node)
    config = second_generation()
    blocks = sum(len(stage.layers) for stage in config.stages)
    assert operators["QLinearConv"] == blocks
    assert operators["MatMulIntegerToFloat"] >= 4 * blocks
    before = Counter(node.op_type for node in second_exported.graph.graph.node)
    for kept in ("LayerNormalization", "Softmax", "Gemm"):
        assert operators[kept] == before[kept] > 0
    assert operators["Conv"] == before["Conv"] - blocks
    assert operators["Conv"] > 0


def test_answer_does_not_depend_on_what_shares_the_batch(quantized: onnx.ModelProto) -> None:
    image, *neighbours = sample_images(9, 3, *SIZE)
    extreme = np.where(neighbours[1] > 127, 255, 0).astype(np.uint8)
    model = session(quantized)
    alone = model.run(None, {"image": image[None]})
    beside = model.run(None, {"image": np.stack([neighbours[0], image, extreme])})
    for one, several in zip(alone, beside, strict=True):
        np.testing.assert_allclose(several[1], one[0], rtol=0, atol=1e-4 * float(one.std()))


def test_unseen_images_stay_within_the_published_bounds(
    second_exported: Exported, quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(quantized, tmp_path / "model.onnx")
    error = judge(tmp_path / "model.onnx", second_exported.model, NORMALISATION, samples(SIZE).held_out)
    assert 0 < error.logits_error < 0.05
    assert [each.name for each in error.differences] == list(OUTPUT_NAMES)


def test_int8_that_changes_the_answers_too_much_is_refused(
    second_exported: Exported, quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(quantized)
    products = [node for node in broken.graph.node if node.op_type == "MatMulIntegerToFloat"]
    scales = {node.input[2] for node in products}
    for tensor in broken.graph.initializer:
        if tensor.name in scales:  # a hundredth of the range: everything saturates
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / np.float32(100), tensor.name))
    onnx.save(broken, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="logits"):
        judge(tmp_path / "model.onnx", second_exported.model, NORMALISATION, samples(SIZE).held_out)


def test_weights_are_int8_and_within_half_a_step_of_the_originals(
    first_exported: Exported,
) -> None:
    graph = quantize(first_exported.graph, samples(SIZE).images)
    tensors = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    original = {each.name: numpy_helper.to_array(each) for each in first_exported.graph.graph.initializer}
    compared = 0
    for node in graph.graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            name = node.input[1].removesuffix("/int8")
            weight, scale = tensors[node.input[1]], tensors[node.input[3]]
            assert weight.dtype == np.int8
            if name in original:
                assert np.all(np.abs(weight * scale - original[name]) <= scale * 0.5001)
                compared += 1
    assert compared > 0


def test_export_without_images_is_refused(first_exported: Exported) -> None:
    with pytest.raises(ExportError, match="calibration"):
        quantize(first_exported.graph, samples(SIZE).images[:0])


def test_demo_reads_unseen_digits_as_well_as_in_float32(exported: ExportOnce, tmp_path: Path) -> None:
    assert (
        main(
            [
                "dat_demo",
                "--weights",
                str(WEIGHTS_FILE),
                "--precision",
                "int8",
                "--no-explain",
                "--repository",
                str(tmp_path),
            ]
        )
        == 0
    )
    opened = open_model(tmp_path / "dat_demo" / "1")
    assert opened.manifest.precision == "int8"
    assert opened.manifest.verification.quantization is not None
    assert opened.manifest.verification.quantization.logits_error <= 0.1
    float32 = open_model(exported("dat_demo") / "dat_demo" / "1")
    assert opened.model_path.stat().st_size < 0.7 * float32.model_path.stat().st_size

    _, held_out = training_and_held_out()
    grey = (enlarge(held_out.images).numpy()[:, 0] * 255).round().astype(np.uint8)
    images = grey[..., None].repeat(3, axis=-1)
    correct = {}
    for model in (opened, float32):
        computed = open_session(model.model_path)
        parts = [computed.run(["logits"], {"image": part})[0] for part in np.array_split(images, 10)]
        correct[model.manifest.precision] = float(np.mean(np.concatenate(parts).argmax(1) == held_out.classes))
    assert correct["fp32"] >= 0.97
    assert abs(correct["int8"] - correct["fp32"]) <= 0.005


class TestPhotos:
    def test_every_fifth_is_kept_to_judge_by(self, tmp_path: Path) -> None:
        found = photos(save_photos(tmp_path / "photos", MIN_PHOTOS), service_preprocessing((72, 72), SIZE))
        assert found.images.shape == (8, *SIZE, 3)
        assert found.held_out.shape == (2, *SIZE, 3)
        assert found.source == "10 photos"

    def test_too_few_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=rf"\b3 images.*\b{MIN_PHOTOS}\b"):
            photos(save_photos(tmp_path / "photos", 3), service_preprocessing((72, 72), SIZE))

    def test_corrupt_one_is_named(self, tmp_path: Path) -> None:
        folder = save_photos(tmp_path / "photos", MIN_PHOTOS)
        (folder / "004.png").write_bytes(b"no image")
        with pytest.raises(ExportError, match=r"004\.png"):
            photos(folder, service_preprocessing((72, 72), SIZE))

    def test_missing_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="nowhere"):
            photos(tmp_path / "nowhere", service_preprocessing((72, 72), SIZE))


def test_calibration_is_refused_for_other_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["dat_demo", "--random-weights", "0", "--calibration", str(tmp_path), "--repository", str(tmp_path)]
    assert main(arguments) == 1
    assert "--calibration is for --precision int8 alone, not fp32" in capsys.readouterr().err
