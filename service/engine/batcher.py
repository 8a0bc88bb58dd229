"""Which images run next, and in how large a batch: policy alone, without threads, and with the time handed in.

The batcher is work-conserving. It is asked for a batch when the device is free, and answers with what waits then, so
that batches grow with the load and nobody waits on an idle device (unless `max_delay_s` asks for that).

A batch is of one graph: that of the image at the head of the line, which is the oldest of the priority whose turn it
is. Others of that graph join it past those of other graphs, who lose nothing: they were not to run in this batch
anyway, and are nearer to the head after it. Since every batch takes the head, no graph can starve another.

Invariants: an image that was added leaves exactly once, in a batch, as expired, or by `cancel`; a batch is never
larger than its bucket; within a priority and a graph images leave in the order they came, and the oldest of a
priority is in the next batch that begins with that priority; an image past its deadline is never in a batch; while
both priorities wait they are taken by `turns`, so that neither can starve or crowd out the other.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from service.engine.turns import BULK_EVERY, Turns
from service.engine.types import Priority, WorkItem

_NEWEST_WEIGHT = 0.2
"""Weight of the newest run in a bucket's average; about the last ten runs count."""
_CAUTIOUS_RUNS = 1000
"""Runs after one that ran out of memory, during which none of its size is chosen."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What `next_batch` decided: `expired` images to turn away, `items` of one graph to run as `bucket`, or nothing."""

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

    def run_s(self, bucket: int) -> float:
        """Return the time that a run of a bucket takes, which has been measured."""
        return self._average_s[bucket]

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

    `costs` has the times of each graph's runs, by its key. `max_delay_s` lets the oldest image wait that long for
    company while no graph has its largest bucket waiting.
    """

    def __init__(
        self, costs: Mapping[str, BucketCosts], *, max_delay_s: float = 0.0, bulk_every: int = BULK_EVERY
    ) -> None:
        self.costs = costs
        self._max_delay_s = max_delay_s
        self._turns = Turns(bulk_every)
        self._queues: dict[Priority, OrderedDict[int, WorkItem]] = {priority: OrderedDict() for priority in Priority}
        self._waiting = Counter[str]()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def images_per_s(self) -> float | None:
        """The best rate of any graph's runs; None before the first."""
        rates = [costs.images_per_s for costs in self.costs.values()]
        return max((rate for rate in rates if rate is not None), default=None)

    @property
    def ready_at_s(self) -> float | None:
        """When `next_batch` has something to decide: None while nothing waits, else a time that may have passed."""
        oldest = [next(iter(queue.values())).enqueued_s for queue in self._queues.values() if queue]
        if not oldest:
            return None
        is_full = any(self._waiting[graph] >= costs.largest for graph, costs in self.costs.items())
        return min(oldest) + (0.0 if is_full else self._max_delay_s)

    def due_priority(self, now_s: float) -> Priority | None:
        """Return the most urgent priority of what waits; None where `next_batch` has nothing to decide yet."""
        ready_at_s = self.ready_at_s
        if ready_at_s is None or now_s < ready_at_s:
            return None
        return next(priority for priority, queue in self._queues.items() if queue)

    def add(self, item: WorkItem) -> None:
        """Let an image wait; tickets are never used twice."""
        self._queues[item.priority][item.ticket] = item
        self._waiting[item.graph] += 1

    def cancel(self, ticket: int) -> WorkItem | None:
        """Take an image out; None where it waits no more."""
        for queue in self._queues.values():
            item = queue.pop(ticket, None)
            if item is not None:
                self._waiting[item.graph] -= 1
                return item
        return None

    def next_batch(self, now_s: float) -> Batch:
        """Decide what the free device does now.

        Images whose deadline has passed come alone, without a batch, so that they end before a run keeps the
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
        graph = self._head().graph
        bucket = self.costs[graph].choose(self._waiting[graph])
        return Batch(self._take(graph, bucket), bucket)

    def _head(self) -> WorkItem:
        """Return the image that must be in the next batch."""
        interactive, bulk = self._queues[Priority.INTERACTIVE], self._queues[Priority.BULK]
        priority = self._turns.next(interactive=bool(interactive), bulk=bool(bulk))
        return next(iter(self._queues[priority].values()))

    def _take(self, graph: str, bucket: int) -> tuple[WorkItem, ...]:
        """Take up to `bucket` images of a graph, by turns; all that wait count for the turns, of whatever graph.

        Where one priority has none of the graph left the other goes on, since the batch would otherwise run with
        places empty; the turns make up for it afterwards.
        """
        interactive, bulk = self._queues[Priority.INTERACTIVE], self._queues[Priority.BULK]
        joining = {
            priority: deque(islice((item for item in queue.values() if item.graph == graph), bucket))
            for priority, queue in self._queues.items()
        }
        taken: list[WorkItem] = []
        while len(taken) < bucket and any(joining.values()):
            priority = self._turns.next(
                interactive=bool(joining[Priority.INTERACTIVE]), bulk=bool(joining[Priority.BULK])
            )
            self._turns.count(priority, interactive=bool(interactive), bulk=bool(bulk))
            item = joining[priority].popleft()
            del self._queues[priority][item.ticket]
            taken.append(item)
        self._waiting[graph] -= len(taken)
        return tuple(taken)
