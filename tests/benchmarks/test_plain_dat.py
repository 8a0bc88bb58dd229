"""The baseline model against the one that is served."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.plain_dat import PlainDAT
from export.source import from_seed
from models.config import DATConfig
from models.variants import VARIANTS


def logits_of_both(config: DATConfig, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    model = from_seed(0, config, image_size=(side, side)).model
    plain = PlainDAT(config, (side, side)).eval()
    plain.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return plain(image), model(image).logits


def assert_same(config: DATConfig, side: int) -> None:
    plain, expected = logits_of_both(config, side)
    assert (plain - expected).abs().max() <= 1e-4 * max(1.0, expected.std().item())


@pytest.mark.parametrize("name", ["dat_demo", "dat_tiny", "dat_pp_tiny"])
def test_plain_model_gives_the_served_models_logits(name: str) -> None:
    assert_same(VARIANTS[name].config, VARIANTS[name].input_size)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - {"dat_demo", "dat_tiny", "dat_pp_tiny"}))
def test_every_plain_model_gives_the_served_models_logits(name: str) -> None:
    assert_same(VARIANTS[name].config, VARIANTS[name].input_size)


@pytest.mark.parametrize("factor", [-1, 0])
def test_plain_model_limits_positions_as_the_second_generation_does(factor: float) -> None:
    demo = VARIANTS["dat_demo"].config
    stages = tuple(dataclasses.replace(stage, offset_range_factor=factor) for stage in demo.stages)
    assert_same(dataclasses.replace(demo, stages=stages), 64)


def test_switch_that_no_published_variant_has_is_refused() -> None:
    demo = VARIANTS["dat_demo"].config
    stages = (*demo.stages[:3], dataclasses.replace(demo.stages[3], log_cpb=True))
    with pytest.raises(ValueError, match="position table"):
        PlainDAT(dataclasses.replace(demo, stages=stages), (64, 64))
