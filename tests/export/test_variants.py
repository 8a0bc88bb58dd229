"""Full variants, exported and verified as the command does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.__main__ import main
from export.graph import OUTPUT_NAMES
from export.sampling import STRATEGY_NAMES
from models.variants import VARIANTS
from service.model.directory import open_model
from service.model.manifest import Manifest
from tests.conftest import ExportOnce

IN_EVERY_RUN = {("dat_tiny", "gridsample"), ("dat_pp_tiny", "gather")}


def export_by_command(repository: Path, *arguments: str) -> Manifest:
    assert main([*arguments, "--random-weights", "1", "--no-explain", "--repository", str(repository)]) == 0
    return open_model(repository / arguments[0] / "1").manifest


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        pytest.param(name, sampling, marks=() if (name, sampling) in IN_EVERY_RUN else pytest.mark.full)
        for name in VARIANTS
        for sampling in STRATEGY_NAMES
    ],
)
def test_variant_exports_and_computes_what_torch_computes(name: str, sampling: str, exported: ExportOnce) -> None:
    manifest = open_model(exported(name, sampling) / name / "1").manifest
    assert [record.name for record in manifest.outputs] == list(OUTPUT_NAMES)
    for record in manifest.outputs:
        assert record.max_abs_difference <= 1e-4 * max(1, record.reference_std)
    strides = dict(zip(OUTPUT_NAMES[2:], (4, 8, 16, 32), strict=True))
    for stage, stride in strides.items():
        side = VARIANTS[name].input_size // stride
        assert manifest.output(stage).shape[1:] == (side, side)


@pytest.mark.full
@pytest.mark.parametrize("sampling", STRATEGY_NAMES)
def test_dynamic_variant_computes_what_torch_computes_at_other_sizes(sampling: str, tmp_path: Path) -> None:
    manifest = export_by_command(tmp_path, "dat_pp_tiny", "--sampling", sampling, "--dynamic-size")
    assert manifest.input.dynamic_size
    assert (manifest.input.size_multiple, manifest.input.sides) == (1, (33, 2048))
    assert manifest.output("stage1").shape == (64, None, None)
    assert manifest.output("stage1").shape_at(33, 225) == (64, 9, 57)


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (("--image-size", "384"), (384, 384)),
        (("--image-size", "448x224", "--window-size", "7"), (448, 224)),
    ],
)
def test_first_generation_at_another_size_computes_what_torch_computes(
    arguments: tuple[str, ...], size: tuple[int, int], tmp_path: Path
) -> None:
    manifest = export_by_command(tmp_path, "dat_tiny", *arguments)
    assert (manifest.input.height, manifest.input.width) == size
