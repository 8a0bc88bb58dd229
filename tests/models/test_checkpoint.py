"""Weight files: every published form loads, nothing in one is executed, every misfit is named."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from models.checkpoint import CheckpointError, load_model, read_weights
from models.config import DATConfig, StageConfig
from models.dat import DAT
from models.misfit import model_name
from models.variants import VARIANTS
from tests.golden_files import synthetic_input, synthetic_weights

# A small model of the first generation with every kind of table and derived buffer.
CONFIG = DATConfig(
    generation=1,
    dim_stem=8,
    img_size=64,
    num_classes=6,
    stages=(
        StageConfig(dim=8, heads=2, layers=("L", "S"), window=2),
        StageConfig(dim=8, heads=2, layers=("L", "S"), window=2),
        StageConfig(dim=16, heads=2, layers=("L", "D"), window=2, groups=2, use_pe=True),
        StageConfig(dim=16, heads=2, layers=("L", "D"), window=2, groups=2, use_pe=True),
    ),
)
SIZE = (64, 64)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    shapes = {name: value.shape for name, value in DAT(CONFIG, SIZE).state_dict().items()}
    return synthetic_weights(shapes, seed=5)


def logits_of(model: DAT, size: tuple[int, int] = SIZE) -> torch.Tensor:
    with torch.inference_mode():
        return model(synthetic_input(2, 2, *size)).logits


def expected_logits(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    model = DAT(CONFIG, SIZE).eval()
    model.load_state_dict(weights)
    return logits_of(model)


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def with_derived_buffers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As published, but for another input size."""
    return {
        **weights,
        "stages.0.attns.0.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
        "stages.0.attns.1.attn_mask": torch.zeros(9, 49, 49),
    }


FORMS = {
    "published": lambda weights: {"model": with_derived_buffers(weights)},
    "bare": lambda weights: weights,
    "data parallel": lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()}},
    "backbone": lambda weights: {
        "state_dict": {
            **{f"backbone.{name}": value for name, value in weights.items()},
            "decode_head.conv_seg.weight": torch.zeros(3),
        }
    },
    "half precision": lambda weights: {name: value.half() for name, value in weights.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_model(form: str, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = load_model(save(FORMS[form](weights), tmp_path / "weights.pth"), CONFIG, image_size=SIZE)
    tolerance = 1e-2 if form == "half precision" else 0
    torch.testing.assert_close(logits_of(model), expected_logits(weights), atol=tolerance, rtol=0)


def test_safetensors_load(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    model = load_model(tmp_path / "weights.safetensors", CONFIG, image_size=SIZE)
    assert torch.equal(logits_of(model), expected_logits(weights))


def test_old_serialisation_loads(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"model": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = load_model(tmp_path / "old.pth", CONFIG, image_size=SIZE)
    assert torch.equal(logits_of(model), expected_logits(weights))


class CfgNode(dict):  # pickled under yacs' name, with the attributes that yacs' own keeps
    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)


def test_a_training_checkpoint_loads_without_yacs(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    with monkeypatch.context() as while_saving:
        while_saving.setitem(sys.modules, "yacs", package)
        while_saving.setitem(sys.modules, "yacs.config", module)
        path = save(
            {
                "model": weights,
                "optimizer": optimizer.state_dict(),
                "lr_scheduler": {"last_epoch": 299},
                "max_accuracy": np.float64(82.03),
                "epoch": 299,
                "config": CfgNode({"MODEL": CfgNode({"TYPE": "dat", "DEPTHS": [2, 2, 6, 2]}), "AMP": True}),
            },
            tmp_path / "training.pth",
        )
    monkeypatch.setitem(sys.modules, "yacs", None)  # importing it now fails
    model = load_model(path, CONFIG, image_size=SIZE)
    assert torch.equal(logits_of(model), expected_logits(weights))


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(
    weights: dict[str, torch.Tensor], tmp_path: Path, zipped: bool
) -> None:
    proof = tmp_path / "executed"
    content = {"model": weights, "config": Hostile(proof)}
    torch.save(content, tmp_path / "hostile.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused.*posix\.system"):
        read_weights(tmp_path / "hostile.pth")
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 cut short", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_is_an_error_that_names_the_file(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="weights"):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        read_weights(tmp_path / "absent.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(3)]])
def test_a_file_without_weights_says_so(content: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds (no weights|a list)"):
        read_weights(save(content, tmp_path / "weights.pth"))


def test_missing_extra_and_misshapen_tensors_are_all_named(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del weights["cls_norm.norm.bias"], weights["stages.2.attns.1.rpe_table"]
    weights["stages.9.surprise"] = torch.zeros(2)
    weights["patch_proj.0.weight"] = torch.zeros(8, 3, 2, 2)
    weights["stages.3.attns.1.rpe_table"] = torch.zeros(2, 5, 5)
    with pytest.raises(CheckpointError) as caught:
        load_model(save(weights, tmp_path / "weights.pth"), CONFIG, image_size=SIZE)
    for part in (
        "2 missing: ",
        "cls_norm.norm.bias",
        "stages.2.attns.1.rpe_table",
        "1 extra: stages.9.surprise",
        "2 of a wrong shape: ",
        "patch_proj.0.weight 8x3x2x2 instead of 8x3x4x4",
        "stages.3.attns.1.rpe_table 2x5x5 instead of 2x3x3",
    ):
        assert part in str(caught.value)


def test_many_tensors_at_fault_are_counted_and_a_few_are_named(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    renamed = {f"stages.9.{name.replace('.', '_')}": value for name, value in weights.items()}
    kept = {"cls_head.weight": weights["cls_head.weight"]}
    with pytest.raises(CheckpointError) as caught:
        load_model(save({**renamed, **kept}, tmp_path / "weights.pth"), CONFIG, image_size=SIZE)
    assert len(str(caught.value)) < 1500
    assert f"{len(weights) - 1} missing: patch_proj.0.weight" in str(caught.value)
    assert f"and {len(weights) - 1 - 5} more" in str(caught.value)


def test_a_dense_prediction_backbone_is_recognised(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    backbone = {f"backbone.{name}": value for name, value in weights.items() if not name.startswith("cls_")}
    backbone["backbone.norms.0.norm.weight"] = torch.ones(8)
    with pytest.raises(CheckpointError, match="classification head"):
        load_model(save({"state_dict": backbone}, tmp_path / "weights.pth"), CONFIG, image_size=SIZE)


def test_a_fine_tuned_head_brings_its_class_count(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weights["cls_head.weight"], weights["cls_head.bias"] = torch.randn(37, 16), torch.randn(37)
    model = load_model(save(weights, tmp_path / "weights.pth"), CONFIG, image_size=SIZE)
    assert model.config.num_classes == 37
    assert logits_of(model).shape == (2, 37)


def test_position_tables_are_interpolated_for_another_size(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = save({"model": with_derived_buffers(weights)}, tmp_path / "weights.pth")
    model = load_model(path, CONFIG, image_size=(192, 128), window=4)
    state = model.state_dict()
    table = "stages.2.attns.1.rpe_table"
    expected = F.interpolate(weights[table][None], (2 * 12 - 1, 2 * 8 - 1), mode="bicubic")[0]
    assert torch.equal(state[table], expected)
    table = "stages.0.attns.1.relative_position_bias_table"
    square = weights[table].reshape(1, 3, 3, 2).permute(0, 3, 1, 2)
    expected = F.interpolate(square, (7, 7), mode="bicubic")[0].permute(1, 2, 0).reshape(49, 2)
    assert torch.equal(state[table], expected)
    unchanged = "stages.0.attns.1.proj_qkv.weight"
    assert torch.equal(state[unchanged], weights[unchanged])
    assert logits_of(model, (192, 128)).isfinite().all()


def test_weights_that_were_tuned_at_the_new_size_are_taken_as_they_are(tmp_path: Path) -> None:
    model = DAT(CONFIG.at_size((128, 128), 4), (128, 128)).eval()
    tuned = synthetic_weights({name: value.shape for name, value in model.state_dict().items()}, seed=6)
    model.load_state_dict(tuned)
    loaded = load_model(save(tuned, tmp_path / "weights.pth"), CONFIG, image_size=(128, 128), window=4)
    assert torch.equal(logits_of(loaded, (128, 128)), logits_of(model, (128, 128)))


WRAPPERS = [
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "net.",
    "a.b.c.",
    "0.",
    "模型.",
    "two words.",
]


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("container", [(), ("state_dict",), ("anything", 0, "below")])
def test_whatever_stands_before_the_names_is_found_by_the_names(
    prefix: str, container: tuple[Any, ...], weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    content: Any = {**{prefix + name: value for name, value in weights.items()}, "criterion.weight": torch.ones(3)}
    for key in reversed(container):
        content = [content] if key == 0 else {key: content, "epoch": 3}
    model = load_model(save(content, tmp_path / "weights.pth"), CONFIG, image_size=SIZE)
    assert torch.equal(logits_of(model), expected_logits(weights))


def moved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value + 0.01 for name, value in weights.items()}


@pytest.mark.parametrize(
    ("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "ema.module")]
)
def test_weights_come_before_their_averages_which_can_be_asked_for(
    plain: str, averaged: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = save({averaged: moved(weights), plain: weights}, tmp_path / "weights.pth")
    notes: list[str] = []
    model = load_model(path, CONFIG, image_size=SIZE, note=notes.append)
    assert torch.equal(logits_of(model), expected_logits(weights))
    assert len(notes) == 1
    assert f"'{averaged}'" in notes[0]
    model = load_model(path, CONFIG, image_size=SIZE, weights_key=averaged)
    assert torch.equal(logits_of(model), expected_logits(moved(weights)))


def test_averages_alone_are_taken_and_said(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = save({"model_ema": weights, "epoch": 1}, tmp_path / "weights.pth")
    notes: list[str] = []
    assert torch.equal(
        logits_of(load_model(path, CONFIG, image_size=SIZE, note=notes.append)), expected_logits(weights)
    )
    assert "averaged weights under 'model_ema'" in notes[0]


def test_the_same_weights_twice_are_no_choice(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    copies = {name: value.clone() for name, value in weights.items()}
    path = save({"student": weights, "teacher": copies}, tmp_path / "weights.pth")
    notes: list[str] = []
    load_model(path, CONFIG, image_size=SIZE, note=notes.append)
    assert notes == []


def test_different_weights_that_fit_alike_are_told_apart(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    flat = {f"student.{name}": value for name, value in weights.items()}
    flat |= {f"teacher.backbone.{name}": value for name, value in moved(weights).items()}
    path = save(flat, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"'student', 'teacher\.backbone'.*--weights-key"):
        load_model(path, CONFIG, image_size=SIZE)
    model = load_model(path, CONFIG, image_size=SIZE, weights_key="teacher")
    assert torch.equal(logits_of(model), expected_logits(moved(weights)))
    with pytest.raises(CheckpointError, match=r"'coach'.*'student', 'teacher\.backbone'"):
        load_model(path, CONFIG, image_size=SIZE, weights_key="coach")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_become_float32(
    kind: torch.dtype, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = save({name: value.to(kind) for name, value in weights.items()}, tmp_path / "weights.pth")
    state = load_model(path, CONFIG, image_size=SIZE).state_dict()
    assert all(torch.equal(state[name], value.to(kind).float()) for name, value in weights.items())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.tensor([float("nan")] * 16), r"cls_norm\.norm\.bias \(NaN\)"),
        (torch.tensor([float("inf"), float("nan")] * 8), r"cls_norm\.norm\.bias \(NaN and infinity\)"),
        (torch.full((16,), 1e60, dtype=torch.float64), r"cls_norm\.norm\.bias \(beyond the range of float32\)"),
        (torch.ones(16, dtype=torch.int8), r"cls_norm\.norm\.bias \(int8 numbers"),
        (torch.ones(16, dtype=torch.complex64), r"cls_norm\.norm\.bias \(complex64 numbers"),
        (torch.ones(16, device="meta"), r"cls_norm\.norm\.bias \(a torch\._utils\._rebuild_meta"),
    ],
)
def test_a_tensor_that_is_no_use_is_named_with_what_it_holds(
    value: torch.Tensor, reason: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = save({**weights, "cls_norm.norm.bias": value}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=reason):
        load_model(path, CONFIG, image_size=SIZE)


def test_another_networks_weights_are_called_so(tmp_path: Path) -> None:
    path = save({f"layers.{number}.weight": torch.ones(2) for number in range(30)}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match=r"layers\.4\.weight and 25 more$"):
        load_model(path, CONFIG, image_size=SIZE)


def test_names_in_a_message_are_short_and_printable(tmp_path: Path) -> None:
    path = save({"a\x1b[2J\nb": torch.ones(1), "c" * 10_000: torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(path, CONFIG, image_size=SIZE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_missing_head_and_another_depth_are_called_so(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    headless = {name: value for name, value in weights.items() if not name.startswith("cls_")}
    with pytest.raises(CheckpointError, match="classification head"):
        load_model(save(headless, tmp_path / "weights.pth"), CONFIG, image_size=SIZE)
    deeper = weights | {
        name.replace("attns.1", "attns.2"): value for name, value in weights.items() if "attns.1" in name
    }
    with pytest.raises(CheckpointError, match=r"stage 1 .*\b3 .*\b2\b"):
        load_model(save(deeper, tmp_path / "weights.pth"), CONFIG, image_size=SIZE)


def empty_weights(variant: str, size: int, window: int | None = None) -> dict[str, torch.Tensor]:
    """As the published file of a variant has them, without numbers that take room."""
    with torch.device("meta"):
        model = DAT(VARIANTS[variant].config.at_size((size, size), window), (size, size))
    return {name: torch.zeros(1).expand(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("given", "wanted", "reason"),
    [
        ("dat_small", "dat_tiny", r"\bdat_tiny\b.*\bdat_small\b"),
        ("dat_base_384", "dat_base", r"\bdat_base\b.*\bdat_base_384\b"),
        ("dat_pp_tiny", "dat_p_tiny", r"\bdat_p_tiny\b.*\bdat_pp_tiny\b"),
        ("dat_tiny", "dat_demo", r"\bdat_demo\b.*\bdat_tiny\b"),
    ],
)
def test_weights_of_another_variant_are_named(given: str, wanted: str, reason: str, tmp_path: Path) -> None:
    path = save({"model": empty_weights(given, VARIANTS[given].input_size)}, tmp_path / "weights.pth")
    size = VARIANTS[wanted].input_size
    with pytest.raises(CheckpointError, match=reason):
        load_model(path, VARIANTS[wanted].config, image_size=(size, size))


def test_tables_of_another_size_are_told_with_the_options_that_take_them(tmp_path: Path) -> None:
    path = save(empty_weights("dat_tiny", 256, 8), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="--image-size 256 --window-size 8 "):
        load_model(path, VARIANTS["dat_tiny"].config, image_size=(224, 224))
    load_model(path, VARIANTS["dat_tiny"].config, image_size=(256, 256), window=8)


def test_variants_are_named_by_their_size_where_they_are_one_network() -> None:
    assert model_name(VARIANTS["dat_pp_base"].config, (224, 224)) == "dat_pp_base"
    assert model_name(VARIANTS["dat_pp_base"].config, (384, 384)) == "dat_pp_base_384"
