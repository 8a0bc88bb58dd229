"""Which images run next, and in how large a batch: policy alone, without threads, and with the time handed in.

The batcher is work-conserving. It is asked for a batch when the device is free, and answers with what waits then, so
that batches grow with the load and nobody waits on an idle device (unless `max_delay_s` asks for that).

Invariants: an image that was added leaves exactly once, in a batch, as expired, or by `cancel`; a batch is never
larger than its bucket; within a priority images leave in the order they came; an image past its deadline is never in
a batch; while both priorities wait they are taken by `turns`, so that neither can starve or crowd out the other.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.turns import BULK_EVERY, Turns
from service.engine.types import Priority, WorkItem

_NEWEST_WEIGHT = 0.2
"""Weight of the newest run in a bucket's average; about the last ten runs count."""
_CAUTIOUS_RUNS = 1000
"""Runs after one that ran out of memory, during which none of its size is chosen."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What `next_batch` decided: either `expired` images to turn away, or `items` to run as `bucket`, or nothing."""

    items: tuple[WorkItem, ...] = ()
    bucket: int = 0
    expired: tuple[WorkItem, ...] = ()


class BucketCosts:
    """The time a run of each bucket takes, and the cheapest way to run the images that wait.

    On a GPU a run of 32 costs little more than one of 20, and padding up is right; on a CPU time grows with the
    images, and 20 run faster as 16 and 4. Neither is assumed: the times decide.

    A bucket's time is an exponentially weighted average. While another bucket runs, the average of one that does not
    falls back towards the shortest time seen, so that a bucket that was slow once is tried again.

    A bucket that ran out of memory, and all larger ones, are left alone for a while: others may hold the memory only
    now, and each try costs a run.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        if not buckets or min(buckets) < 1:
            raise ValueError(f"buckets must be one or more positive batch sizes, not {list(buckets)}")
        self.buckets = tuple(sorted(set(buckets)))
        self._usable = self.buckets
        self._cautious_runs = 0
        self._average_s: dict[int, float] = {}
        self._best_s: dict[int, float] = {}
        self._choices: list[int] | None = None

    @property
    def largest(self) -> int:
        """The largest bucket."""
        return self.buckets[-1]

    @property
    def images_per_s(self) -> float | None:
        """The best rate of any bucket measured so far; None before the first."""
        return max((bucket / max(cost_s, 1e-9) for bucket, cost_s in self._average_s.items()), default=None)

    def observe(self, bucket: int, run_s: float) -> None:
        """Take in the time of one run of `bucket`."""
        self._best_s[bucket] = min(run_s, self._best_s.get(bucket, math.inf))
        self._average_s.setdefault(bucket, run_s)
        for measured, average_s in self._average_s.items():
            target_s = run_s if measured == bucket else self._best_s[measured]
            self._average_s[measured] = average_s + _NEWEST_WEIGHT * (target_s - average_s)
        self._cautious_runs -= 1
        if self._cautious_runs == 0:
            self._usable = self.buckets
        self._choices = None

    def ran_out_of_memory(self, bucket: int) -> None:
        """Choose only smaller buckets than this for the next 1,000 runs, where there are any."""
        if bucket > self.buckets[0]:
            self._usable = tuple(each for each in self.buckets if each < bucket)
            self._cautious_runs = _CAUTIOUS_RUNS
            self._choices = None

    def choose(self, waiting: int) -> int:
        """Return the bucket to run now, of the plan that runs `waiting` (> 0) images in the least total time.

        The plan's largest bucket goes first: it answers the most images, and late-comers may still join the rest.
        Until every bucket has been measured, the smallest that holds all images is chosen.
        """
        waiting = min(waiting, self._usable[-1])
        if len(self._average_s) < len(self.buckets):
            return next(bucket for bucket in self._usable if bucket >= waiting)
        if self._choices is None:
            self._choices = self._plan()
        return self._choices[waiting]

    def _plan(self) -> list[int]:
        """Return the bucket to run first for each number of waiting images, by dynamic programming.

        `best[n]` holds the plan for n images as (total time, runs, its largest bucket), of which the least wins: of
        plans that take equally long the one with fewer runs, and then with less padding. A run leaves n - bucket.
        """
        best = [(0.0, 0, 0)]
        for waiting in range(1, self._usable[-1] + 1):
            plans = []
            for bucket in self._usable:
                rest_s, rest_runs, rest_largest = best[max(waiting - bucket, 0)]
                plans.append((self._average_s[bucket] + rest_s, rest_runs + 1, max(bucket, rest_largest)))
            best.append(min(plans))
        return [largest for _, _, largest in best]


class Batcher:
    """Two queues and the rules by which images leave them.

    `max_delay_s` lets the oldest image wait that long for company while fewer than the largest bucket wait.
    """

    def __init__(self, costs: BucketCosts, *, max_delay_s: float = 0.0, bulk_every: int = BULK_EVERY) -> None:
        self.costs = costs
        self._max_delay_s = max_delay_s
        self._turns = Turns(bulk_every)
        self._queues: dict[Priority, OrderedDict[int, WorkItem]] = {priority: OrderedDict() for priority in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def ready_at_s(self) -> float | None:
        """When `next_batch` has something to decide: None while nothing waits, else a time that may have passed."""
        oldest = [next(iter(queue.values())).enqueued_s for queue in self._queues.values() if queue]
        if not oldest:
            return None
        delay_s = 0.0 if len(self) >= self.costs.largest else self._max_delay_s
        return min(oldest) + delay_s

    def add(self, item: WorkItem) -> None:
        """Let an image wait; tickets are never used twice."""
        self._queues[item.priority][item.ticket] = item

    def cancel(self, ticket: int) -> WorkItem | None:
        """Take an image out; None where it waits no more."""
        for queue in self._queues.values():
            if ticket in queue:
                return queue.pop(ticket)
        return None

    def next_batch(self, now_s: float) -> Batch:
        """Decide what the free device does now.

        Images whose deadline has passed come alone, without a batch, so that they are told before a run keeps the
        caller busy; ask again for the batch.
        """
        expired = tuple(item for queue in self._queues.values() for item in queue.values() if item.deadline_s <= now_s)
        if expired:
            for item in expired:
                self.cancel(item.ticket)
            return Batch(expired=expired)
        ready_at_s = self.ready_at_s
        if ready_at_s is None or now_s < ready_at_s:
            return Batch()
        bucket = self.costs.choose(len(self))
        return Batch(tuple(self._take() for _ in range(min(bucket, len(self)))), bucket)

    def _take(self) -> WorkItem:
        interactive, bulk = self._queues[Priority.INTERACTIVE], self._queues[Priority.BULK]
        priority = self._turns.take(interactive=bool(interactive), bulk=bool(bulk))
        return self._queues[priority].popitem(last=False)[1]
