from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.admission import Admission, Backlog, BusyRate
from service.engine.types import Priority

INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK
backlogs = st.builds(Backlog, st.integers(0, 2000), st.integers(0, 2000))
rates = st.floats(0.1, 10_000)


def refusal_of(
    admission: Admission,
    backlog: Backlog,
    *,
    images: int = 1,
    priority: Priority = INTERACTIVE,
    left_s: float = math.inf,
    rate: float | None = 10.0,
) -> float | None:
    """When to come back, or None for work that is taken."""
    refusal = admission.refusal(images, priority=priority, left_s=left_s, backlog=backlog, device_images_per_s=rate)
    return None if refusal is None else refusal.retry_after_s


def test_work_is_taken_where_its_deadline_can_be_kept_and_refused_where_not() -> None:
    admission = Admission(largest_batch=4)
    assert refusal_of(admission, Backlog(19), left_s=2.0) is None
    assert refusal_of(admission, Backlog(20), left_s=2.0) is not None
    assert refusal_of(admission, Backlog(10), images=11, left_s=2.0) is not None


def test_refused_work_is_told_when_it_would_be_taken() -> None:
    assert refusal_of(Admission(largest_batch=4), Backlog(99), left_s=4.0) == pytest.approx(6.0)
    assert refusal_of(Admission(largest_batch=4, max_wait_s=3.0), Backlog(90)) == pytest.approx(6.0)


def test_interactive_work_waits_for_bulk_no_longer_than_a_batch_and_its_share() -> None:
    admission = Admission(largest_batch=4, bulk_every=8)
    assert admission.ahead(INTERACTIVE, Backlog(0, 1000)) == 4
    assert admission.ahead(INTERACTIVE, Backlog(70, 1000)) == pytest.approx(84)
    assert admission.ahead(INTERACTIVE, Backlog(70, 1)) == 71
    assert admission.ahead(BULK, Backlog(70, 1000)) == 1070


def test_without_any_rate_all_is_taken() -> None:
    assert refusal_of(Admission(largest_batch=4, max_wait_s=0.1), Backlog(1000), left_s=0.001, rate=None) is None


@given(left_s=st.floats(-10, 10), priority=st.sampled_from(Priority), rate=rates, images=st.integers(1, 64))
def test_with_nothing_ahead_all_is_taken(left_s: float, priority: Priority, rate: float, images: int) -> None:
    admission = Admission(largest_batch=8, max_wait_s=0.001)
    assert refusal_of(admission, Backlog(), images=images, priority=priority, left_s=left_s, rate=rate) is None


@given(backlog=backlogs, more=backlogs, priority=st.sampled_from(Priority), rate=rates, left_s=st.floats(0.01, 100))
def test_what_is_refused_would_be_with_more_ahead_too(
    backlog: Backlog, more: Backlog, priority: Priority, rate: float, left_s: float
) -> None:
    admission = Admission(largest_batch=8, max_wait_s=50.0)
    fuller = Backlog(backlog.interactive + more.interactive, backlog.bulk + more.bulk)
    if refusal_of(admission, backlog, priority=priority, left_s=left_s, rate=rate) is not None:
        assert refusal_of(admission, fuller, priority=priority, left_s=left_s, rate=rate) is not None


@given(backlog=backlogs, rate=rates, left_s=st.floats(0.01, 100))
def test_interactive_work_is_taken_wherever_bulk_work_is(backlog: Backlog, rate: float, left_s: float) -> None:
    admission = Admission(largest_batch=8, max_wait_s=20.0)
    assert admission.ahead(INTERACTIVE, backlog) <= admission.ahead(BULK, backlog)
    if refusal_of(admission, backlog, priority=BULK, left_s=left_s, rate=rate) is None:
        assert refusal_of(admission, backlog, left_s=left_s, rate=rate) is None


@given(backlog=backlogs, rate=rates, left_s=st.floats(0.01, 100), max_wait_s=st.floats(0.01, 100))
def test_refused_work_is_taken_once_the_backlog_has_shrunk_for_the_time_told(
    backlog: Backlog, rate: float, left_s: float, max_wait_s: float
) -> None:
    admission = Admission(largest_batch=8, max_wait_s=max_wait_s)
    told_s = refusal_of(admission, backlog, priority=BULK, left_s=left_s, rate=rate)
    if told_s is not None and told_s < 60 and 1 / rate <= left_s:
        later = Backlog(max(math.floor(backlog.images - told_s * rate), 0), 0)
        again = refusal_of(admission, later, priority=BULK, left_s=left_s + 1e-6, rate=rate)
        assert again is None


def test_rate_is_measured_in_busy_time_alone() -> None:
    rate = BusyRate(busy_images=4)
    rate.observe(0.0, images=3, answered=0)
    rate.observe(10.0, images=8, answered=3)
    assert rate.images_per_s is None
    for step in range(1, 21):
        rate.observe(10.0 + step, images=8, answered=3 + 5 * step)
    assert rate.images_per_s == pytest.approx(5.0)
    rate.observe(31.0, images=2, answered=108)
    rate.observe(500.0, images=8, answered=120)
    assert rate.images_per_s == pytest.approx(5.0)


def test_rate_follows_a_device_that_became_slower() -> None:
    rate = BusyRate(busy_images=1)
    answered = 0
    for step in range(200):
        answered += 10 if step < 100 else 1
        rate.observe(step * 0.1, images=8, answered=answered)
    measured = rate.images_per_s
    assert measured is not None
    assert 10.0 < measured < 20.0


def test_rate_survives_a_worker_whose_count_is_gone() -> None:
    rate = BusyRate(busy_images=1)
    for step in range(100):
        rate.observe(step * 0.1, images=8, answered=1000 + step)
    rate.observe(10.0, images=8, answered=50)
    rate.observe(10.1, images=8, answered=51)
    assert rate.images_per_s == pytest.approx(10.0, rel=0.1)


def test_measured_rate_goes_before_the_devices_own() -> None:
    admission = Admission(largest_batch=4)
    for step in range(101):
        admission.rate.observe(step * 0.1, images=50, answered=step)
    assert refusal_of(admission, Backlog(50), left_s=4.0, rate=1000.0) == pytest.approx(1.1)


@given(
    moments=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 100), st.integers(0, 50)), min_size=1, max_size=60),
    busy_images=st.integers(1, 64),
)
def test_rate_is_none_or_between_the_slowest_and_the_fastest_seen(
    moments: list[tuple[float, int, int]], busy_images: int
) -> None:
    rate = BusyRate(busy_images)
    now_s, answered, seen = 0.0, 0, []
    rate.observe(now_s, images=0, answered=0)
    was_busy = False
    for after_s, images, more in moments:
        now_s, answered = now_s + after_s, answered + more
        rate.observe(now_s, images=images, answered=answered)
        if was_busy:
            seen.append(more / after_s if after_s > 0 else math.inf if more else 0.0)
        was_busy = images >= busy_images
        if rate.images_per_s is not None:
            assert min(seen) * 0.999 <= rate.images_per_s <= max(seen) * 1.001 + 1e-9
