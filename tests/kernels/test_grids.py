"""Grids of every kernel that the variants need; that they are right is seen where operators are launched."""

from __future__ import annotations

import pytest

from kernels.grids import Axis, grid_of
from kernels.table import specializations
from models.variants import VARIANTS

FREE = {"batch", "rows", "elements", "keys"}


def test_an_axis_holds_all_of_a_size() -> None:
    axis = Axis("rows", 4)
    assert [axis.programs({"rows": rows}) for rows in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert Axis("batch", factor=6).programs({"batch": 3}) == 18
    assert Axis(factor=5).programs({}) == 5
    with pytest.raises(KeyError, match="rows"):
        axis.programs({"batch": 3})


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kernel_of_a_variant_has_a_grid_that_a_launch_can_compute(variant: str) -> None:
    for one in specializations([variant]):
        grid = grid_of(one.kernel.name, one.constants)
        sizes = {axis.size for axis in grid} - {None}
        assert sizes <= FREE
        assert sizes, "a kernel that no size is free for"
        assert not sizes & one.constants.keys()
        assert all(axis.programs(dict.fromkeys(FREE, 1)) >= 1 for axis in grid)


def test_windows_and_their_queries() -> None:
    (first, *_) = (one for one in specializations(["dat_base_384"]) if one.kernel.name == "window_attention")
    grid = grid_of(first.kernel.name, first.constants)
    # 96 / 12 windows a side, 144 queries in blocks of 64, 4 heads
    assert [axis.programs({"batch": 2}) for axis in grid] == [2 * 64, 3, first.constants["heads"]]
