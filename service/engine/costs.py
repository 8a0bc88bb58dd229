"""What runs cost: the time of each batch size, for each graph and each shape of image; policy alone, without clocks.

Images of other shapes than the model's own come as callers please. Their costs begin with those of the own shape,
scaled by the pixels, and are kept for a bounded number of shapes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from service.engine.types import Shape, pixels_of

MOST_SHAPES = 64
"""Shapes other than the model's own of which something is kept, the latest ones."""
_NEWEST_WEIGHT = 0.2
"""Weight of the newest run in a bucket's average; about the last ten runs count."""
_CAUTIOUS_RUNS = 1000
"""Runs after one that ran out of memory, during which none of its size is chosen."""


class BucketCosts:
    """The time a run of each bucket takes, and the cheapest way to run the images that wait.

    On a GPU a run of 32 costs little more than one of 20, and padding up is right; on a CPU time grows with the
    images, and 20 run faster as 16 and 4. Neither is assumed: the times decide.

    A bucket's time is an exponentially weighted average. While another bucket runs, the average of one that does not
    falls back towards the shortest time seen, so that a bucket that was slow once is tried again. Of a bucket that has
    not run, `expected_s` stands for its time, in proportion to what those take that have.

    A bucket that ran out of memory, and all larger ones, are left alone for a while: others may hold the memory only
    now, and each try costs a run.
    """

    def __init__(self, buckets: Sequence[int], *, expected_s: Mapping[int, float] = MappingProxyType({})) -> None:
        if not buckets or min(buckets) < 1:
            raise ValueError(f"buckets must be one or more positive batch sizes, not {list(buckets)}")
        self.buckets = tuple(sorted(set(buckets)))
        self._usable = self.buckets
        self._cautious_runs = 0
        self._expected_s = expected_s
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

    @property
    def times_s(self) -> Mapping[int, float]:
        """The time of each bucket that has one, measured or expected."""
        if not self._expected_s:
            return self._average_s
        both = self._average_s.keys() & self._expected_s.keys()
        off = (
            sum(self._average_s[each] for each in both) / sum(self._expected_s[each] for each in both) if both else 1.0
        )
        return {**{bucket: expected_s * off for bucket, expected_s in self._expected_s.items()}, **self._average_s}

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

    def choose(self, waiting: int, *, longest_s: float = math.inf) -> int:
        """Return the bucket to run now, of the plan that runs `waiting` (> 0) images in the least total time.

        The plan's largest bucket goes first: it answers the most images, and late-comers may still join the rest.
        Until every bucket has a time, the smallest that holds all images is chosen. Where others wait for the device,
        no run is begun that takes more than `longest_s`, unless even the smallest does.
        """
        waiting = min(waiting, self._usable[-1])
        if self._choices is None:
            times_s = self.times_s
            if len(times_s) < len(self.buckets):
                return next(bucket for bucket in self._usable if bucket >= waiting)
            self._choices = self._plan(times_s)
        chosen = self._choices[waiting]
        if longest_s < math.inf:
            times_s = self.times_s
            short = [bucket for bucket in self._usable if bucket <= chosen and times_s[bucket] <= longest_s]
            return short[-1] if short else self._usable[0]
        return chosen

    def _plan(self, times_s: Mapping[int, float]) -> list[int]:
        """Return the bucket to run first for each number of waiting images, by dynamic programming.

        `best[n]` holds the plan for n images as (total time, runs, its largest bucket), of which the least wins: of
        plans that take equally long the one with fewer runs, and then with less padding. A run leaves n - bucket.
        """
        best = [(0.0, 0, 0)]
        for waiting in range(1, self._usable[-1] + 1):
            plans = []
            for bucket in self._usable:
                rest_s, rest_runs, rest_largest = best[max(waiting - bucket, 0)]
                plans.append((times_s[bucket] + rest_s, rest_runs + 1, max(bucket, rest_largest)))
            best.append(min(plans))
        return [largest for _, _, largest in best]


class GraphCosts:
    """The costs of one graph's runs, for images of the model's `own` shape and of others."""

    def __init__(self, buckets: Sequence[int], own: Shape) -> None:
        self.own = BucketCosts(buckets)
        self._own = own
        self._others: OrderedDict[Shape, BucketCosts] = OrderedDict()

    def largest_at(self, shape: Shape) -> int:
        """Return the largest bucket that images of a shape are run in."""
        return self.own.largest if shape == self._own else buckets_at(shape, self.own.buckets, self._own)[-1]

    def at(self, shape: Shape) -> BucketCosts:
        """Return the costs of runs with images of a shape; those of the shape that was asked for longest ago may go."""
        if shape == self._own:
            return self.own
        costs = self._others.get(shape)
        if costs is None:
            buckets = buckets_at(shape, self.own.buckets, self._own)
            scale, known_s = pixels_of(shape) / pixels_of(self._own), self.own.times_s
            expected_s = {bucket: known_s[bucket] * scale for bucket in buckets if bucket in known_s}
            costs = self._others[shape] = BucketCosts(buckets, expected_s=expected_s)
            if len(self._others) > MOST_SHAPES:
                self._others.popitem(last=False)
        else:
            self._others.move_to_end(shape)
        return costs


def buckets_at(shape: Shape, buckets: Sequence[int], own: Shape) -> tuple[int, ...]:
    """Return the buckets, ascending, that images of a shape are run in: those without more pixels than the largest.

    That one's memory is known to suffice for images of the `own` shape. The smallest is always among them.
    """
    most_pixels = buckets[-1] * pixels_of(own)
    fitting = tuple(bucket for bucket in buckets if bucket * pixels_of(shape) <= most_pixels)
    return fitting or (buckets[0],)
