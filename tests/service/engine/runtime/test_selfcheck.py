from __future__ import annotations

import numpy as np
import pytest

from service.engine.runtime.selfcheck import TOLERANCES, check_images, differences, tiled

EXPECTED = {"logits": np.arange(12, dtype=np.float32).reshape(2, 6), "stage1": np.ones((2, 3, 2, 2), np.float32)}


def test_equal_outputs_pass() -> None:
    assert differences(EXPECTED, {name: values.copy() for name, values in EXPECTED.items()}, 1e-6) == ([], 0.0)


def test_rounding_passes_and_another_result_is_named() -> None:
    rounded = {name: values * np.float32(1 + 1e-4) for name, values in EXPECTED.items()}
    complaints, error = differences(EXPECTED, rounded, TOLERANCES["fp32"])
    assert complaints == []
    assert error == pytest.approx(1e-4, rel=1e-2)
    wrong = {**rounded, "stage1": rounded["stage1"] * np.float32(1.02)}
    (complaint,), error = differences(EXPECTED, wrong, TOLERANCES["fp32"])
    assert error == pytest.approx(0.02, rel=0.01)
    assert complaint.startswith("stage1 differs by 0.02 of its norm, where 0.005 is allowed")
    assert differences(EXPECTED, wrong, TOLERANCES["fp16"])[0] == []


def test_rows_in_another_order_do_not_pass() -> None:
    assert differences(EXPECTED, {**EXPECTED, "logits": EXPECTED["logits"][::-1]}, TOLERANCES["int8"])[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_never_pass(value: float) -> None:
    broken = EXPECTED["logits"].copy()
    broken[1, 1] = value
    assert differences(EXPECTED, {**EXPECTED, "logits": broken}, 1e9)[0] == ["logits is not finite"]


def test_another_shape_does_not_pass() -> None:
    given = {**EXPECTED, "logits": EXPECTED["logits"][:1]}
    assert differences(EXPECTED, given, 1e9)[0] == ["logits has the shape (1, 6), not (2, 6)"]


def test_an_output_that_should_be_zero_must_be() -> None:
    assert differences({"a": np.zeros((1, 2), np.float32)}, {"a": np.full((1, 2), 0.1, np.float32)}, 1e-2)[0]


def test_the_images_are_the_same_every_time_and_differ_from_each_other() -> None:
    first, second = check_images((4, 4, 3))
    np.testing.assert_array_equal(check_images((4, 4, 3))[0], first)
    assert (first != second).any()
    assert tiled({"a": np.array([1.0, 2.0])}, 5)["a"].tolist() == [1.0, 2.0, 1.0, 2.0, 1.0]
