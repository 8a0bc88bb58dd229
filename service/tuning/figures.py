"""What was measured of two choices side by side, and when one of them is better.

A machine's speed drifts with what else it does. Two servers that are asked in turn within a round meet the same
weather, so that their ratio in that round says more than either figure; the median over rounds drops the rounds that
were disturbed. How far ratios scatter around their medians is taken from all comparisons together, since a few rounds
can agree by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from statistics import fmean, median

MIN_GAIN = 0.02
"""A smaller gain is not worth a setting, whatever the noise."""
_DEVIATIONS = 2.0
"""Standard deviations of a median that a gain must exceed."""
_SD_OF_MAD = 1.4826
"""Standard deviations in a median absolute deviation, where what scatters is normal."""
_MEDIAN_OVER_MEAN = 1.2533
"""Standard deviation of a median over that of a mean."""


class Goal(StrEnum):
    """What makes a server better."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a server did in one window under a closed loop of clients."""

    images_per_s: float
    """Images answered; those refused or failed do not count."""
    p50_ms: float
    p95_ms: float
    failed: int = 0
    """Requests that ended in anything but an answer."""
    client_share: float = 0.0
    """Processor time of the clients by elapsed time: 0.1 is a tenth of one core."""

    def score(self, goal: Goal) -> float:
        """Return a number that is twice as large where the server is twice as good; 0 where it answered nothing."""
        if goal is Goal.THROUGHPUT or not self.images_per_s:
            return self.images_per_s
        return 1000 / math.sqrt(self.p50_ms * self.p95_ms)


@dataclass(frozen=True, slots=True)
class Pair:
    """The windows of two servers that were asked one after the other."""

    best: Figures
    other: Figures


Round = Mapping[int, Pair]
"""Pairs by the number of requests in flight."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two choices side by side for some rounds; or why the other could not be served or asked."""

    rounds: Sequence[Round]
    fault: str | None = None

    @property
    def concurrencies(self) -> Sequence[int]:
        """The numbers of requests in flight that were measured."""
        return tuple(self.rounds[0]) if self.rounds else ()

    def log_ratios(self, goal: Goal, concurrency: int) -> list[float]:
        """Return by round the logarithm of how many times as good as the best the other was."""
        pairs = [each[concurrency] for each in self.rounds]
        return [_log(pair.other.score(goal)) - _log(pair.best.score(goal)) for pair in pairs]

    def whole(self, goal: Goal) -> list[float]:
        """Return by round the logarithm of the geometric mean of the ratios over all concurrencies."""
        columns = [self.log_ratios(goal, concurrency) for concurrency in self.concurrencies]
        return [fmean(row) for row in zip(*columns, strict=True)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many times as good the other was, within how much, and whether that is better."""

    ratio: float
    margin: float
    """A ratio nearer to 1 than this, up or down, may be noise."""
    by_concurrency: Mapping[int, float]
    worse_at: int | None
    """Requests in flight at which it was worse by more than noise."""

    @property
    def is_better(self) -> bool:
        """Whether it is better by more than noise, and worse nowhere."""
        return self.ratio > 1 + self.margin and self.worse_at is None


@dataclass(slots=True)
class Noise:
    """How far ratios scatter from round to round, learnt from every comparison."""

    goal: Goal
    _whole: _Scatter = field(default_factory=lambda: _Scatter())
    _single: _Scatter = field(default_factory=lambda: _Scatter())
    """Of the ratios at one concurrency."""

    def judge_same(self, comparison: Comparison) -> Verdict:
        """Take in a choice beside itself, and return what would be said: whatever differs there is noise."""
        self._whole.add_same(comparison.whole(self.goal))
        for concurrency in comparison.concurrencies:
            self._single.add_same(comparison.log_ratios(self.goal, concurrency))
        return self._verdict(comparison)

    def judge(self, comparison: Comparison) -> Verdict:
        """Take in a comparison, and return what it says."""
        self._whole.add(comparison.whole(self.goal))
        for concurrency in comparison.concurrencies:
            self._single.add(comparison.log_ratios(self.goal, concurrency))
        return self._verdict(comparison)

    def _verdict(self, comparison: Comparison) -> Verdict:
        whole = comparison.whole(self.goal)
        medians = {each: median(comparison.log_ratios(self.goal, each)) for each in comparison.concurrencies}
        limit = max(self._single.margin(ratios) for ratios in map(partial(comparison.log_ratios, self.goal), medians))
        worse = [each for each, ratio in medians.items() if ratio < -limit]
        return Verdict(
            ratio=math.exp(median(whole)),
            margin=math.expm1(self._whole.margin(whole)),
            by_concurrency={each: math.exp(ratio) for each, ratio in medians.items()},
            worse_at=min(worse, key=lambda each: medians[each], default=None),
        )


@dataclass(slots=True)
class _Scatter:
    """How far logarithms of ratios are from what they scatter around."""

    deviations: list[float] = field(default_factory=list)
    of_same: float = 0.0
    """How far the median of a choice beside itself was from nothing: as much can be wrong with any other median."""

    def add_same(self, log_ratios: Sequence[float]) -> None:
        """Take in the ratios of a choice beside itself, which would be 1."""
        self.deviations += map(abs, log_ratios)
        self.of_same = max(self.of_same, abs(median(log_ratios)))

    def add(self, log_ratios: Sequence[float]) -> None:
        """Take in the ratios of two choices."""
        self.deviations += _deviations(log_ratios)

    def margin(self, log_ratios: Sequence[float]) -> float:
        """Return the logarithm of the least ratio that is no noise, of the median of these.

        They may scatter more than those before, and agree by chance.
        """
        typical = max((median(each) for each in (self.deviations, _deviations(log_ratios)) if each), default=0.0)
        of_median = _MEDIAN_OVER_MEAN * _SD_OF_MAD * typical / math.sqrt(len(log_ratios))
        return max(math.log1p(MIN_GAIN), self.of_same, _DEVIATIONS * of_median)


def _deviations(log_ratios: Sequence[float]) -> list[float]:
    """Return how far each is from their median.

    Of an odd number the median itself is left out; and a median of few is nearer to them than what they scatter around.
    """
    middle, count = median(log_ratios), len(log_ratios)
    found = sorted(abs(each - middle) for each in log_ratios)
    return [each * math.sqrt(count / max(count - 1, 1)) for each in found[count % 2 :]]


def _log(score: float) -> float:
    return math.log(max(score, 1e-9))
