from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine.batcher import Batcher
from service.engine.costs import BucketCosts, GraphCosts
from service.engine.types import Priority, WorkItem
from tests.service.engine.fakes import MODEL, OTHER, OWN, item

BULK_EVERY = 3


def measured(times_s: dict[int, float]) -> BucketCosts:
    costs = BucketCosts(list(times_s))
    for bucket, run_s in times_s.items():
        costs.observe(bucket, run_s)
    return costs


def batcher_of(*buckets: int, **options: Any) -> Batcher:
    """A batcher of two graphs that are run in the same sizes."""
    return Batcher({key: GraphCosts(buckets, OWN) for key in (MODEL, OTHER)}, **options)


def tickets(items: tuple[WorkItem, ...]) -> list[int]:
    return [each.ticket for each in items]


class BatcherMachine(RuleBasedStateMachine):
    """Any order of arrivals, cancellations, waiting and batches, against a list of what must still be inside."""

    graphs = (MODEL,)
    shapes = (OWN,)
    most_in_a_row = BULK_EVERY

    def __init__(self) -> None:
        super().__init__()
        self.batcher = batcher_of(1, 2, 4, bulk_every=BULK_EVERY)
        self.now_s = 0.0
        self.inside: list[WorkItem] = []
        self.interactive_in_a_row_while_bulk_waits = 0

    @rule(priority=st.sampled_from(Priority), patience_s=st.sampled_from([0.0, 1.0, 2.0, math.inf]), data=st.data())
    def arrive(self, priority: Priority, patience_s: float, data: st.DataObject) -> None:
        graph, shape = data.draw(st.sampled_from(self.graphs)), data.draw(st.sampled_from(self.shapes))
        new = item(
            priority=priority, graph=graph, shape=shape, deadline_s=self.now_s + patience_s, enqueued_s=self.now_s
        )
        self.batcher.add(new)
        self.inside.append(new)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.inside))
        assert self.batcher.cancel(gone.ticket) is gone
        assert self.batcher.cancel(gone.ticket) is None
        self.inside.remove(gone)

    @rule(run_s=st.floats(0.001, 10), bucket=st.sampled_from([1, 2, 4]), data=st.data())
    def measure(self, run_s: float, bucket: int, data: st.DataObject) -> None:
        costs = self.batcher.costs[MODEL].at(data.draw(st.sampled_from(self.shapes)))
        if bucket in costs.buckets:
            costs.observe(bucket, run_s)

    @rule()
    def ask_for_a_batch(self) -> None:
        batch = self.batcher.next_batch(self.now_s)
        late = [each for each in self.inside if each.deadline_s <= self.now_s]
        assert sorted(tickets(batch.expired)) == sorted(each.ticket for each in late)
        assert not (batch.expired and batch.items)
        assert bool(batch.items) == bool(self.inside and not late)
        assert len(batch.items) <= batch.bucket <= 4
        assert len({(taken.graph, taken.shape) for taken in batch.items}) <= 1
        assert all(batch.bucket in self.batcher.costs[taken.graph].at(taken.shape).buckets for taken in batch.items)
        heads = [self.oldest(priority) for priority in Priority]
        assert not batch.items or any(taken is head for taken in batch.items for head in heads)
        for taken in batch.items:
            same = [
                each
                for each in self.inside
                if (each.priority, each.graph, each.shape) == (taken.priority, taken.graph, taken.shape)
            ]
            assert taken is same[0]  # first come, first served
            bulk_waits = any(each.priority is Priority.BULK for each in self.inside)
            skipped = taken.priority is Priority.INTERACTIVE and bulk_waits
            self.interactive_in_a_row_while_bulk_waits = (
                self.interactive_in_a_row_while_bulk_waits + 1 if skipped else 0
            )
            assert self.interactive_in_a_row_while_bulk_waits < self.most_in_a_row
            self.inside.remove(taken)
        for gone in late:
            self.inside.remove(gone)

    def oldest(self, priority: Priority) -> WorkItem | None:
        return next((each for each in self.inside if each.priority is priority), None)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert len(self.batcher) == len(self.inside)

    def teardown(self) -> None:
        while self.inside:
            self.ask_for_a_batch()
        assert self.batcher.next_batch(self.now_s).items == ()
        assert self.batcher.ready_at_s is None
        assert self.batcher._waiting == {}  # nothing is kept of shapes that nobody waits with


BatcherMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_every_image_leaves_exactly_once_in_order_and_in_time = BatcherMachine.TestCase


class TwoGraphsMachine(BatcherMachine):
    """The same with two graphs."""

    graphs = (MODEL, OTHER)
    # Four bulk images of a batch, of which one was due, are made up for by three times two; a batch of four is never
    # cut short.
    most_in_a_row = 4 * (BULK_EVERY - 1) + 4


TwoGraphsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_every_image_of_two_graphs_leaves_exactly_once_in_order_and_in_time = TwoGraphsMachine.TestCase


class ShapesMachine(TwoGraphsMachine):
    """The same with images of several shapes, of which the larger ones run in smaller batches."""

    shapes = (OWN, (1, 1), (4, 4), (9, 9))


ShapesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_every_image_of_any_shape_leaves_exactly_once_in_order_and_in_time = ShapesMachine.TestCase


def test_a_lonely_shape_is_run_soon_however_many_others_arrive() -> None:
    batcher = batcher_of(1, 4, bulk_every=BULK_EVERY)
    for _ in range(10):
        batcher.add(item(enqueued_s=0.0))
    one = item(shape=(1, 4), enqueued_s=1.0)
    batcher.add(one)
    batches = []
    while one not in (batches[-1].items if batches else ()):
        for side in range(5, 9):
            batcher.add(item(shape=(1, side), enqueued_s=2.0))
            batcher.add(item(enqueued_s=2.0))
        batches.append(batcher.next_batch(3.0))
    assert [len(batch.items) for batch in batches] == [4, 4, 4, 1]


def test_a_delay_ends_when_a_large_shape_has_the_largest_batch_that_it_is_run_in() -> None:
    batcher = batcher_of(1, 2, 4, max_delay_s=60.0)
    batcher.add(item(shape=(4, 4), enqueued_s=10.0))
    assert batcher.next_batch(10.0).items == ()
    batcher.add(item(shape=(4, 4), enqueued_s=10.0))
    assert len(batcher.next_batch(10.0).items) == 2


@pytest.mark.parametrize(("crowd", "lonely"), [(MODEL, OTHER), (OTHER, MODEL)])
@pytest.mark.parametrize("priority", Priority)
def test_an_image_is_run_soon_however_many_of_the_other_graph_arrive(
    crowd: str, lonely: str, priority: Priority
) -> None:
    batcher = batcher_of(1, 4, bulk_every=BULK_EVERY)
    for _ in range(10):
        batcher.add(item(graph=crowd, priority=priority, enqueued_s=0.0))
    one = item(graph=lonely, priority=priority, enqueued_s=1.0)
    batcher.add(one)
    batches = []
    while one not in (batches[-1].items if batches else ()):
        for _ in range(4):
            batcher.add(item(graph=crowd, priority=priority, enqueued_s=2.0))
        batches.append(batcher.next_batch(3.0))
    assert [len(batch.items) for batch in batches] == [4, 4, 4, 1]  # those before it, with company, and then it


def test_images_join_a_batch_past_those_of_the_other_graph() -> None:
    batcher = batcher_of(1, 2, 4)
    waiting = [item(graph=graph, enqueued_s=number) for number, graph in enumerate([MODEL, OTHER] * 4)]
    for each in waiting:
        batcher.add(each)
    first, second = batcher.next_batch(9.0), batcher.next_batch(9.0)
    assert tickets(first.items) == tickets(tuple(waiting[0::2]))
    assert tickets(second.items) == tickets(tuple(waiting[1::2]))
    assert batcher.next_batch(9.0).items == ()


@pytest.mark.parametrize(("interactive", "bulk"), [(MODEL, OTHER), (OTHER, MODEL)])
def test_bulk_of_the_other_graph_keeps_its_share_of_an_endless_stream(interactive: str, bulk: str) -> None:
    batcher = batcher_of(8, bulk_every=BULK_EVERY)
    taken = Counter[Priority]()
    for _ in range(300):
        for _ in range(8):
            batcher.add(item(graph=interactive))
            batcher.add(item(graph=bulk, priority=Priority.BULK))
        taken.update(each.priority for each in batcher.next_batch(0.0).items)
    assert taken.total() == 300 * 8  # no place is left empty
    assert taken[Priority.BULK] / taken.total() == pytest.approx(1 / BULK_EVERY, abs=0.01)


def test_runs_of_one_graph_do_not_change_the_times_of_the_other() -> None:
    costs = {graph: GraphCosts([1, 4], OWN) for graph in (MODEL, OTHER)}
    for graph, largest_s in ((MODEL, 2.0), (OTHER, 9.0)):
        costs[graph].own.observe(1, 1.0)
        costs[graph].own.observe(4, largest_s)
    batcher = Batcher(costs)
    for graph in (MODEL, OTHER):
        for _ in range(4):
            batcher.add(item(graph=graph, enqueued_s=float(graph == OTHER)))
    batches = [batcher.next_batch(5.0) for _ in range(5)]
    assert [(batch.items[0].graph, batch.bucket) for batch in batches] == [(MODEL, 4)] + [(OTHER, 1)] * 4
    assert batcher.images_per_s == 2.0


def test_a_delay_ends_when_either_graph_has_a_full_batch() -> None:
    batcher = batcher_of(1, 2, max_delay_s=60.0)
    batcher.add(item(enqueued_s=10.0))
    batcher.add(item(graph=OTHER, enqueued_s=10.0))
    assert batcher.next_batch(10.0).items == ()
    batcher.add(item(graph=OTHER, enqueued_s=10.0))
    assert [len(batcher.next_batch(10.0).items) for _ in range(1)] == [1]  # the oldest goes first


@given(bulk=st.integers(1, 10), arrivals=st.integers(1, 8), largest=st.sampled_from([1, 2, 4, 8]))
def test_bulk_goes_on_under_an_endless_interactive_stream(bulk: int, arrivals: int, largest: int) -> None:
    batcher = batcher_of(largest, bulk_every=BULK_EVERY)
    for _ in range(bulk):
        batcher.add(item(priority=Priority.BULK))
    taken = bulk_left = 0
    while bulk_left < bulk:
        for _ in range(max(arrivals, largest)):
            batcher.add(item())
        batch = batcher.next_batch(0.0)
        taken += len(batch.items)
        bulk_left += sum(each.priority is Priority.BULK for each in batch.items)
        assert bulk_left >= min(bulk, taken // BULK_EVERY)


def test_interactive_goes_before_a_flood_of_bulk() -> None:
    batcher = batcher_of(4, bulk_every=4)
    for _ in range(100):
        batcher.add(item(priority=Priority.BULK, enqueued_s=0.0))
    urgent = [item(enqueued_s=50.0) for _ in range(3)]
    for each in urgent:
        batcher.add(each)
    assert tickets(batcher.next_batch(60.0).items)[:3] == tickets(tuple(urgent))


def test_a_batch_takes_what_waits_without_delay() -> None:
    batcher = batcher_of(1, 8)
    waiting = [item(enqueued_s=5.0) for _ in range(3)]
    for each in waiting:
        batcher.add(each)
    assert batcher.ready_at_s == 5.0
    batch = batcher.next_batch(5.0)
    assert tickets(batch.items) == tickets(tuple(waiting))
    assert batch.bucket == 8


def test_with_a_delay_the_oldest_image_waits_for_company_but_no_longer() -> None:
    batcher = batcher_of(1, 4, max_delay_s=0.5)
    batcher.add(item(enqueued_s=10.0))
    batcher.add(item(enqueued_s=10.4, priority=Priority.BULK))
    assert batcher.ready_at_s == 10.5
    assert batcher.next_batch(10.49).items == ()
    assert len(batcher.next_batch(10.5).items) == 2


def test_a_full_batch_does_not_wait_out_the_delay() -> None:
    batcher = batcher_of(1, 2, max_delay_s=60.0)
    batcher.add(item(enqueued_s=10.0))
    batcher.add(item(enqueued_s=10.0))
    assert len(batcher.next_batch(10.0).items) == 2


def test_expired_images_are_told_before_a_batch_is_formed() -> None:
    batcher = batcher_of(4)
    late, good = item(deadline_s=1.0), item(deadline_s=3.0)
    batcher.add(late)
    batcher.add(good)
    first, second = batcher.next_batch(1.0), batcher.next_batch(1.0)
    assert (first.expired, first.items) == ((late,), ())
    assert (second.expired, second.items) == ((), (good,))


@pytest.mark.parametrize(("waiting", "bucket"), [(1, 1), (2, 4), (3, 4), (4, 4), (5, 32), (32, 32), (500, 32)])
def test_before_any_measurement_the_smallest_bucket_that_holds_all_is_run(waiting: int, bucket: int) -> None:
    assert BucketCosts([32, 1, 4, 4]).choose(waiting) == bucket


def test_where_a_large_run_costs_little_more_images_are_padded_up() -> None:
    costs = measured({1: 2.0, 8: 2.4, 32: 4.0})
    assert [costs.choose(waiting) for waiting in (1, 2, 8, 9, 20, 32)] == [1, 8, 8, 32, 32, 32]


def test_where_time_grows_with_the_images_none_is_padded() -> None:
    costs = measured({1: 1.0, 4: 3.9, 16: 15.5, 32: 31.5})
    assert [costs.choose(waiting) for waiting in (1, 2, 3, 4, 7, 20, 31)] == [1, 1, 1, 4, 4, 16, 16]


def test_of_plans_that_take_equally_long_the_one_with_fewer_runs_and_less_padding_is_run() -> None:
    in_proportion = measured({1: 1.0, 2: 2.0, 4: 4.0})
    assert [in_proportion.choose(waiting) for waiting in (1, 2, 3, 4)] == [1, 2, 2, 4]
    all_the_same = measured({1: 1.0, 2: 1.0, 4: 1.0})
    assert [all_the_same.choose(waiting) for waiting in (1, 2, 3, 4)] == [1, 2, 4, 4]


def test_where_large_runs_are_slower_per_image_they_are_avoided_even_under_load() -> None:
    costs = measured({1: 0.10, 8: 1.0, 32: 4.4})
    assert [costs.choose(waiting) for waiting in (1, 8, 32, 1000)] == [1, 1, 1, 1]


@given(
    times_s=st.dictionaries(st.sampled_from([1, 2, 3, 4, 6, 8]), st.floats(0.01, 10), min_size=1),
    waiting=st.integers(1, 8),
)
def test_the_chosen_bucket_begins_a_plan_of_the_least_total_time(times_s: dict[int, float], waiting: int) -> None:
    waiting = min(waiting, max(times_s))

    @cache
    def least_s(images: int) -> float:
        return 0.0 if images <= 0 else min(run_s + least_s(images - bucket) for bucket, run_s in times_s.items())

    chosen = measured(times_s).choose(waiting)
    assert times_s[chosen] + least_s(waiting - chosen) == pytest.approx(least_s(waiting))


def test_a_bucket_that_becomes_slow_is_avoided_and_tried_again_later() -> None:
    costs = measured({1: 1.0, 4: 2.0})
    assert costs.choose(4) == 4
    for _ in range(20):
        costs.observe(4, 9.0)
    assert costs.choose(4) == 1
    for _ in range(20):
        costs.observe(1, 1.0)
    assert costs.choose(4) == 4


def test_the_rate_is_that_of_the_best_bucket() -> None:
    costs = BucketCosts([1, 4])
    assert costs.images_per_s is None
    costs.observe(1, 0.5)
    costs.observe(4, 1.0)
    assert costs.images_per_s == pytest.approx(4.0)


@pytest.mark.parametrize("buckets", [[], [0, 1], [-2]])
def test_buckets_that_cannot_be_run_are_refused(buckets: list[int]) -> None:
    with pytest.raises(ValueError, match="positive batch sizes"):
        BucketCosts(buckets)


def test_a_share_that_would_put_bulk_first_is_refused() -> None:
    with pytest.raises(ValueError, match="bulk_every"):
        batcher_of(1, bulk_every=1)


def test_a_bucket_that_ran_out_of_memory_is_left_alone_for_a_thousand_runs() -> None:
    costs = BucketCosts([1, 4, 16])
    for bucket in costs.buckets:
        costs.observe(bucket, 1.0)
    assert costs.choose(16) == 16
    costs.ran_out_of_memory(16)
    assert [costs.choose(waiting) for waiting in (1, 4, 16, 100)] == [1, 4, 4, 4]
    costs.ran_out_of_memory(4)
    assert costs.choose(16) == 1
    for _ in range(999):
        costs.observe(1, 1.0)
    assert costs.choose(16) == 1
    costs.observe(1, 1.0)
    assert costs.choose(16) == 16


def test_the_smallest_bucket_stays_whatever_ran_out() -> None:
    costs = BucketCosts([2, 4])
    costs.ran_out_of_memory(2)
    assert costs.choose(1) == 2
