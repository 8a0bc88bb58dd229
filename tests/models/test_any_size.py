"""Models of the second generation at sizes of which 32 is no divisor, beside the published dense-prediction code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.config import DATConfig, SizeError
from models.dat import DAT
from models.layers import LAYER_NORM_EPS
from models.variants import VARIANTS
from tests.export.networks import dynamic, second_generation
from tests.golden import synthetic
from tests.golden_files import FOLDER, PARITY_TOLERANCE, relative_difference, synthetic_input, synthetic_model

DENSE = FOLDER / "dense"
"""What the published segmentation code computes in its backbone: each stage behind a norm that it adds."""
PADDED = [name for name, variant in VARIANTS.items() if variant.config.use_conv_patches]


def backbone(config: DATConfig, size: tuple[int, int] | None, seed: int) -> DAT:
    """A network whose weights are those that the segmentation code has under its own names."""
    model = DAT(config, size)
    weights = {
        name: torch.from_numpy(synthetic.tensor(f"backbone.{name}", tuple(value.shape), seed))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model.eval()


def normed(stage: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    channels = stage.shape[1]
    weight, bias = (
        torch.from_numpy(synthetic.tensor(f"backbone.norms.{number}.norm.{leaf}", (channels,), seed))
        for leaf in ("weight", "bias")
    )
    return F.layer_norm(stage.permute(0, 2, 3, 1), (channels,), weight, bias, LAYER_NORM_EPS).permute(0, 3, 1, 2)


@pytest.mark.parametrize("is_free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("size", [(300, 512), pytest.param((512, 683), marks=pytest.mark.full)])
def test_stages_at_odd_sizes_are_those_of_the_published_code(size: tuple[int, int], is_free: bool) -> None:
    path: Path = DENSE / f"dat_pp_tiny_{size[0]}x{size[1]}_seed1.npz"
    with np.load(path) as archive, torch.inference_mode():
        model = backbone(VARIANTS["dat_pp_tiny"].config, None if is_free else size, seed=1)
        stages = model(synthetic_input(1, 1, *size)).stages
        for number, stage in enumerate(stages):
            values = normed(stage, number, seed=1).numpy()
            assert values.shape == tuple(archive[f"stage{number + 1}_shape"])
            steps = (max(1, values.shape[1] // 16), *[max(1, values.shape[2] // 8)] * 2)
            subsampled = values[:, :: steps[0], :: steps[1], :: steps[2]]
            assert relative_difference(subsampled, archive[f"stage{number + 1}"]) <= PARITY_TOLERANCE


@pytest.mark.parametrize("network", [second_generation, dynamic])
@pytest.mark.parametrize("size", [(33, 33), (33, 70), (97, 45), (65, 64)])
def test_a_free_size_gives_what_the_fixed_size_gives(network: object, size: tuple[int, int]) -> None:
    """Down to maps that are smaller than the neighbourhood, of 2 x 2 cells in the last stage."""
    config: DATConfig = network()  # type: ignore[operator]
    images = synthetic_input(1, 2, *size)
    with torch.inference_mode():
        expected, actual = synthetic_model(config, size)(images), synthetic_model(config, None)(images)
    assert [stage.shape[2:] for stage in actual.stages] == [config.map_size(stage, size) for stage in range(4)]
    assert torch.isfinite(actual.logits).all()
    torch.testing.assert_close(actual.logits, expected.logits)
    torch.testing.assert_close(actual.stages, expected.stages)
    for free, fixed in zip(actual.sampling, expected.sampling, strict=True):
        torch.testing.assert_close(free.position, fixed.position)


@pytest.mark.parametrize("name", PADDED)
def test_every_side_from_33_up_is_taken_and_none_below(name: str) -> None:
    config = VARIANTS[name].config
    assert (config.size_multiple, config.min_side) == (1, 33)
    config.check_size((33, 1001))
    with pytest.raises(SizeError, match="32x224 cannot work: sides must be 33 or more, such as 33 or 224"):
        config.check_size((32, 224))


def test_a_side_of_32_is_refused_because_its_answer_would_not_be_a_number() -> None:
    config = dynamic()
    with torch.inference_mode():
        logits = synthetic_model(config, None)(synthetic_input(1, 1, 32, 64)).logits
    assert torch.isnan(logits).all()


@pytest.mark.parametrize(("name", "smallest"), [("dat_tiny", 32), ("dat_p_tiny", 64)])
def test_stems_without_padding_and_windows_keep_to_whole_cells(name: str, smallest: int) -> None:
    config = VARIANTS[name].config
    assert (config.size_multiple, config.min_side) == (32, smallest)
    with pytest.raises(SizeError, match=f"multiples of 32 from {smallest} up"):
        config.check_size((225, 224))


def test_the_least_side_follows_from_every_stage() -> None:
    """Keys that are pooled or tiled by their stride need a map as large as that before there is one."""
    from dataclasses import replace

    config = dynamic()
    stages = list(config.stages)
    stages[2] = replace(stages[2], stride=4, offset_kernel=4)
    assert replace(config, stages=tuple(stages)).min_side == 16 * 7 + 1  # 8 cells of stage 3 make 2 keys
