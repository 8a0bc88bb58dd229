"""Configurations and sizes: what can be built is built, what cannot is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.config import ConfigError, DATConfig, SizeError
from models.dat import DAT
from models.variants import VARIANTS, find_variant
from tests.golden_files import description, synthetic_input, synthetic_model


def published(variant: str, **changes: Any) -> dict[str, Any]:
    return {**description(variant)["config"], **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_spec": [["L", "S"], ["L", "P"], ["L", "D"] * 3, ["L", "D"]]}, "stage 1: .*'P'"),
        ({"use_swiglu": True}, "use_swiglu"),
        ({"heads": [3, 6, 12]}, "heads .*4"),
        ({"heads": [3, 6, 12, 25]}, "stage 3: 768 .*25 heads"),
        ({"groups": [-1, -1, 5, 6]}, "stage 2: 12 heads .*5 groups"),
        ({"depths": [2, 2, 4, 2]}, "depths .*stage_spec"),
        ({"use_dwc_mlps": [True, False, False, False]}, "use_dwc_mlps .*generation 2"),
        ({"use_conv_patches": True}, "use_conv_patches .*generation 2"),
        ({"patch_size": 8}, "patch_size .*4"),
        ({"img_size": 200}, "img_size .*32"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DATConfig.from_published(published("dat_tiny", **changes), generation=1)


def test_a_configuration_without_its_essentials_names_them() -> None:
    with pytest.raises(ConfigError, match="dim_stem, heads"):
        DATConfig.from_published({"dims": [8] * 4, "stage_spec": [["L"]] * 4}, generation=1)


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"dat_huge.*dat_tiny.*dat_demo"):
        find_variant("dat_huge")


@pytest.mark.parametrize(
    ("variant", "size", "message"),
    [
        ("dat_tiny", (200, 224), "32 .*192 or 224"),
        ("dat_tiny", (64, 64), r"\b224\b"),
        ("dat_pp_tiny", (32, 256), r"\b33\b"),
        ("dat_pp_tiny", (0, 256), r"\b33\b"),
    ],
)
def test_a_size_that_cannot_work_names_sizes_that_can(variant: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(SizeError, match=message):
        VARIANTS[variant].config.at_size(size)


@pytest.mark.parametrize(
    ("size", "chosen", "expected"),
    [((224, 224), None, 7), ((448, 224), None, 7), ((384, 384), None, 12), ((384, 384), 6, 6), ((256, 256), None, 8)],
)
def test_another_size_gets_a_window_that_divides_it(size: tuple[int, int], chosen: int | None, expected: int) -> None:
    config = VARIANTS["dat_tiny"].config.at_size(size, chosen)
    assert {stage.window for stage in config.stages} == {expected}


def test_a_fixed_bias_ties_the_model_to_its_size() -> None:
    config = VARIANTS["dat_tiny"].config
    stages = tuple(replace(stage, fixed_pe=stage.use_pe) for stage in config.stages)
    with pytest.raises(SizeError, match=r"fixed_pes .*stage 2 .*224x224"):
        DAT(replace(config, stages=stages), (448, 448))


@pytest.mark.parametrize("variant", ["dat_tiny", "dat_base_384"])
def test_windowed_models_refuse_a_free_size(variant: str) -> None:
    with pytest.raises(SizeError, match="generation 2"):
        DAT(VARIANTS[variant].config, None)


def test_a_free_size_gives_what_the_fixed_sizes_give() -> None:
    config = VARIANTS["dat_demo"].config
    free = synthetic_model(config, None)
    for size in ((64, 64), (96, 160)):
        images = synthetic_input(1, 2, *size)
        with torch.inference_mode():
            expected, actual = synthetic_model(config, size)(images), free(images)
        torch.testing.assert_close(actual.logits, expected.logits)
        torch.testing.assert_close(actual.stages, expected.stages)


def test_a_stem_of_another_width_is_projected() -> None:
    config = replace(VARIANTS["dat_demo"].config, dim_stem=24)
    model = synthetic_model(config, (64, 64))
    assert model.stages[0].proj.weight.shape == (16, 24, 1, 1)
    with torch.inference_mode():
        assert model(synthetic_input(1, 1, 64, 64)).stages[0].shape == (1, 16, 16, 16)


def test_layer_scale_multiplies_both_branches() -> None:
    config = VARIANTS["dat_demo"].config
    scaled = replace(config, stages=tuple(replace(stage, layer_scale=0.5) for stage in config.stages))
    plain, model = synthetic_model(config, (64, 64)), DAT(scaled, (64, 64)).eval()
    weights = plain.state_dict()
    names = [name for name in model.state_dict() if name not in weights]
    assert "stages.2.layer_scales.3.weight" in names
    assert all("layer_scales" in name for name in names)
    model.load_state_dict({**weights, **{name: torch.full_like(model.state_dict()[name], 0.5) for name in names}})
    for layer in plain.modules():  # halving the last matrix of a branch is the same as scaling the branch
        for name in ("proj_out", "proj", "linear2"):
            last = getattr(layer, name, None)
            last = last[0] if isinstance(last, torch.nn.Sequential) else last
            if isinstance(last, torch.nn.Linear | torch.nn.Conv2d):
                last.weight.data *= 0.5
                last.bias.data *= 0.5
    images = synthetic_input(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images).logits, plain(images).logits)
