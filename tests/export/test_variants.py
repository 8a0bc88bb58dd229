"""Full variants, exported and verified as the command does it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from export.graph import OUTPUT_NAMES
from export.pipeline import ExportJob, run
from export.progress import Progress
from export.sampling import STRATEGY_NAMES
from models.variants import VARIANTS
from service.repository import Manifest, open_model

IN_EVERY_RUN = {("dat_tiny", "gridsample"), ("dat_pp_tiny", "gather")}


def exported(tmp_path: Path, **job: object) -> Manifest:
    path = run(ExportJob(repository=tmp_path, seed=1, **job), Progress(io.StringIO()))  # type: ignore[arg-type]
    return open_model(path).manifest


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        pytest.param(name, sampling, marks=() if (name, sampling) in IN_EVERY_RUN else pytest.mark.full)
        for name in VARIANTS
        for sampling in STRATEGY_NAMES
    ],
)
def test_variant_exports_and_computes_what_torch_computes(name: str, sampling: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    manifest = exported(tmp_path, variant=variant, sampling=sampling)
    assert [record.name for record in manifest.outputs] == list(OUTPUT_NAMES)
    for record in manifest.outputs:
        assert record.max_abs_difference <= 1e-4 * max(1, record.reference_std)
    strides = dict(zip(OUTPUT_NAMES[2:], (4, 8, 16, 32), strict=True))
    for stage, stride in strides.items():
        side = variant.input_size // stride
        assert manifest.output(stage).shape[1:] == (side, side)


@pytest.mark.full
@pytest.mark.parametrize("sampling", STRATEGY_NAMES)
def test_dynamic_variant_computes_what_torch_computes_at_other_sizes(sampling: str, tmp_path: Path) -> None:
    manifest = exported(tmp_path, variant=VARIANTS["dat_pp_tiny"], sampling=sampling, dynamic_size=True)
    assert manifest.input.dynamic_size
    assert manifest.output("stage1").shape == (64, None, None)


@pytest.mark.full
@pytest.mark.parametrize(("size", "window"), [((384, 384), None), ((448, 224), 7)])
def test_first_generation_at_another_size_computes_what_torch_computes(
    size: tuple[int, int], window: int | None, tmp_path: Path
) -> None:
    manifest = exported(tmp_path, variant=VARIANTS["dat_tiny"], image_size=size, window=window)
    assert (manifest.input.height, manifest.input.width) == size
