from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.predictors.retries import RetryPolicy, retry_after_s


def least(low: float, high: float) -> float:
    return low


def most(low: float, high: float) -> float:
    return high


def test_waits_double_up_to_the_longest_and_chance_takes_up_to_half() -> None:
    longest = RetryPolicy(first_wait_s=1, longest_wait_s=6, uniform=most)
    shortest = RetryPolicy(first_wait_s=1, longest_wait_s=6, uniform=least)
    tries = range(1, 6)
    assert [longest.wait_s(n, elapsed_s=0, retry_after_s=None) for n in tries] == [1, 2, 4, 6, 6]
    assert [shortest.wait_s(n, elapsed_s=0, retry_after_s=None) for n in tries] == [0.5, 1, 2, 3, 3]


def test_no_try_is_made_before_the_server_said() -> None:
    assert RetryPolicy(uniform=least).wait_s(9, elapsed_s=0, retry_after_s=7) == 7
    later_s = RetryPolicy(uniform=most).wait_s(9, elapsed_s=0, retry_after_s=8)
    assert later_s == 10


def test_it_gives_up_where_the_next_try_would_be_too_late() -> None:
    policy = RetryPolicy(give_up_after_s=10, uniform=least)
    assert policy.wait_s(1, elapsed_s=4, retry_after_s=6) == 6
    assert policy.wait_s(1, elapsed_s=4.1, retry_after_s=6) is None


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("3", 3),
        (" 0 ", 0),
        ("Sun, 22 Nov 2026 10:00:30 GMT", 30),
        ("Sun, 22 Nov 2026 09:00:00 GMT", 0),
        (None, None),
        ("soon", None),
        ("-1", None),
        ("1e400", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, wait_s: float | None) -> None:
    assert retry_after_s(header, now=lambda: datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)) == wait_s
