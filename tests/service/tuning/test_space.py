"""What is tried on which machine."""

from __future__ import annotations

import pytest

from service.tuning.choice import Change
from service.tuning.space import Cores, ModelFacts, bucket_lists, steps

FLAT = {1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}
PAYS = {1: 10.0, 2: 18.0, 4: 32.0, 8: 56.0}


def tried(
    *, cores: int = 8, counted: int | None = None, fixed: frozenset[str] = frozenset(), **facts: object
) -> list[Change]:
    model = ModelFacts(**{"name": "a", "device": "cpu", "run_ms": FLAT, "fixed": fixed, **facts})  # type: ignore[arg-type]
    return [step.change for step in steps([model], cores=Cores(cores, counted or cores), fixed=fixed)]


def values_of(changes: list[Change], *names: str) -> list[tuple[object, ...]]:
    return [tuple(each.values[name] for name in names) for each in changes if each.values.keys() == set(names)]


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 64])
def test_instances_times_threads_are_no_more_than_the_cores(cores: int) -> None:
    pairs = values_of(tried(cores=cores), "instances", "threads")
    assert all(1 <= instances * threads <= cores for instances, threads in pairs)  # type: ignore[operator]
    assert len(pairs) == len(set(pairs)) <= 5
    assert (1, cores) not in pairs


def test_on_two_cores_little_is_tried() -> None:
    assert values_of(tried(cores=2), "instances", "threads") == [(2, 1), (1, 1)]
    assert values_of(tried(cores=2), "workers") == [(2,)]
    assert values_of(tried(cores=2), "decode_threads") == [(1,)]


def test_a_quota_that_the_defaults_do_not_see_is_tried() -> None:
    changes = tried(cores=2, counted=16)
    assert (1, 2) in values_of(changes, "instances", "threads")
    assert (2,) in values_of(changes, "decode_threads")


def test_what_is_given_is_not_tried() -> None:
    for name in ("instances", "threads", "batch_buckets", "workers", "decode_threads"):
        assert not any(name in each.values for each in tried(fixed=frozenset({name})))
    assert tried(fixed=frozenset({"instances", "threads", "batch_buckets", "workers", "decode_threads"})) == []


def test_a_gpu_has_no_threads() -> None:
    changes = tried(device="cuda:0")
    assert not any("threads" in each.values for each in changes)
    assert values_of(changes, "instances") == [(2,)]


def test_batches_that_do_not_pay_are_left_out_and_one_more_is_tried_where_the_largest_does() -> None:
    assert bucket_lists(FLAT) == [(1,)]
    assert bucket_lists(PAYS) == [(1, 2, 4, 8, 16)]
    assert bucket_lists({1: 10.0, 2: 20.0, 4: 30.0}) == [(1, 4, 8), (1, 4)]
    assert bucket_lists({1: 10.0}) == [(1, 2)]


def test_models_come_one_by_one_and_then_what_they_share() -> None:
    models = [ModelFacts(name, "cpu", FLAT, frozenset()) for name in ("a", "b")]
    found = steps(models, cores=Cores(2, 2), fixed=frozenset())
    assert [step.models for step in found] == [("a",)] * 3 + [("b",)] * 3 + [("a", "b")] * 2
    assert [step.change.model for step in found] == ["a"] * 3 + ["b"] * 3 + [None] * 2
