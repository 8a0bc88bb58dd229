"""The separable form against the general sampler, at any size and position."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.sampling import GRID, SEPARABLE

TOLERANCE = 2e-5


class Case:
    """A map, a table, queries and positions: inside, beyond the border, far away, and on the centres of pixels."""

    def __init__(self, data: st.DataObject) -> None:
        def draw(low: int, high: int) -> int:
            return data.draw(st.integers(low, high))

        generator = torch.Generator().manual_seed(draw(0, 2**32 - 1))
        batch, groups, heads, channels = draw(1, 3), draw(1, 3), draw(1, 2), draw(1, 4)
        height, width = draw(2, 9), draw(2, 9)
        keys = (draw(1, 4), draw(1, 4))
        self.tokens = torch.randn(batch, height, width, groups * channels, generator=generator)
        table_size = (draw(2, 2 * height + 3), draw(2, 2 * width + 3))
        self.table = torch.randn(groups, heads, *table_size, generator=generator)
        self.rows = torch.rand(height, generator=generator) * 2.5 - 1.25
        self.columns = torch.rand(width, generator=generator) * 2.5 - 1.25
        reach = data.draw(st.sampled_from([1.0, 1.5, 100.0]))
        position = (torch.rand(batch, groups, *keys, 2, generator=generator) * 2 - 1) * reach
        if data.draw(st.booleans()):
            steps = torch.tensor([height - 1, width - 1]) / 2
            position = (position * steps).round() / steps
        self.position = position


def worst(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_separable_form_samples_features_as_the_sampler_does(data: st.DataObject) -> None:
    case = Case(data)
    expected = GRID.features(case.tokens, case.position)
    assert worst(SEPARABLE.features(case.tokens, case.position), expected) < TOLERANCE


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_separable_form_samples_tables_as_the_sampler_does(data: st.DataObject) -> None:
    case = Case(data)
    arguments = (case.table, case.rows, case.columns, case.position)
    assert worst(SEPARABLE.bias(*arguments), GRID.bias(*arguments)) < TOLERANCE
