from __future__ import annotations

import base64
import io
import json
from decimal import Decimal
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.calls.tensors import as_raw, narrowed
from service.errors import InferenceFailed, InvalidParameter
from service.http.answers.tensors import as_base64, as_json_bytes, as_npz

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)


@settings(derandomize=True, deadline=None)
@given(st.data(), st.sampled_from(["float32", "float16"]))
def test_every_form_reads_back_exactly(data: st.DataObject, dtype: str) -> None:
    elements = st.floats(width=32 if dtype == "float32" else 16, allow_nan=False, allow_infinity=False)
    array = data.draw(hnp.arrays(dtype, SHAPES, elements=elements))
    np.testing.assert_array_equal(np.array(json.loads(as_json_bytes(array)), dtype), array)
    np.testing.assert_array_equal(np.frombuffer(as_raw(array), np.dtype(dtype).newbyteorder("<")), array.ravel())
    encoded = as_base64(array)
    assert (encoded.dtype, encoded.shape) == (dtype, list(array.shape))
    assert base64.b64decode(encoded.data) == as_raw(array)
    with np.load(io.BytesIO(as_npz({"x": array}))) as archive:
        assert archive["x"].dtype == dtype
        np.testing.assert_array_equal(archive["x"], array)


def test_big_endian_array_is_written_little_endian() -> None:
    assert as_raw(np.array([1.0], ">f4")) == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_json_refuses_what_it_cannot_hold(bad: float) -> None:
    with pytest.raises(InferenceFailed):
        as_json_bytes(np.array([bad], np.float32))


@pytest.mark.parametrize("shape", [(100_000,), (3, 200, 100), (40_000, 1, 2), (2, 1, 90_000)])
def test_array_that_is_rendered_in_pieces_is_whole(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(np.array(json.loads(as_json_bytes(array)), np.float32), array)
    assert as_json_bytes(array[::-1]) == as_json_bytes(np.ascontiguousarray(array[::-1]))


def test_every_finite_float16_has_few_digits_and_reads_back_exactly() -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    rendered = as_json_bytes(numbers)
    np.testing.assert_array_equal(np.array(json.loads(rendered), np.float16).view(np.uint16), numbers.view(np.uint16))
    assert all(len(Decimal(text).normalize().as_tuple().digits) <= 5 for text in rendered[1:-1].decode().split(","))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2)])
def test_float16_halves(dtype: Literal["float32", "float16"], size: int) -> None:
    assert narrowed(np.ones(1, np.float32), dtype).nbytes == size


def test_value_too_large_for_float16_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="float32"):
        narrowed(np.array([70000.0], np.float32), "float16")
