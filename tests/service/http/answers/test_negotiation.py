from __future__ import annotations

import pytest

from service.errors import NotAcceptable
from service.http.answers.negotiation import negotiate

JSON, NPZ, RAW = "application/json", "application/x-npz", "application/octet-stream"
OFFERED = (JSON, NPZ, RAW)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (NPZ, NPZ),
        ("APPLICATION/X-NPZ", NPZ),
        (f"{JSON};q=0.5, {RAW}", RAW),
        (f"{JSON};q=0.5, {RAW};q=0.4, */*;q=0.1", JSON),
        (f"*/*;q=0.1, {NPZ};q=0.2", NPZ),
        (f"{JSON};q=0, */*", NPZ),
        (f"text/html, {RAW};q=0.001", RAW),
        (f"application/*;q=0.9, {JSON};q=0.1", NPZ),
        (f"{NPZ};q=abc, {RAW}", RAW),
        (f"nonsense, {RAW}", RAW),
        (f"{NPZ} ; q=1.0 , {RAW};q=0.9", NPZ),
    ],
)
def test_best_liked_type_is_chosen(accept: str | None, chosen: str) -> None:
    assert negotiate(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", f"{JSON};q=0", "image/*", "nonsense", f"{JSON};q=7"])
def test_nothing_acceptable_is_an_error_that_names_what_there_is(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/json"):
        negotiate(accept, (JSON,))
