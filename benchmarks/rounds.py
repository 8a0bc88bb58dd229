"""Comparing contenders on a machine that is not quiet: in turn, round after round, and by medians.

A machine's speed drifts with what else it does. Contenders that take turns within a round meet the same weather, so
that their ratio in that round says more than either time; the median over rounds drops the turns that were disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

MIN_TURN_S = 0.5
"""A turn repeats short runs for so long."""


class Turn(NamedTuple):
    """One contender's turn in one round: elapsed time, and processor time of all threads, of one run."""

    run_ms: float
    cpu_ms: float


def take_turn(run: Callable[[], object], *, min_s: float = MIN_TURN_S) -> Turn:
    """Run once untimed, since others had the caches before, and then for at least `min_s`."""
    run()
    runs, began_s, cpu_s = 0, time.perf_counter(), time.process_time()
    while True:
        run()
        runs += 1
        elapsed_s = time.perf_counter() - began_s
        if elapsed_s >= min_s:
            return Turn(elapsed_s * 1000 / runs, (time.process_time() - cpu_s) * 1000 / runs)


def play(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Turn]]:
    """Return the turns of each contender, one a round; each round begins with another contender."""
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in rotated(list(contenders), number):
            turns[name].append(take_turn(contenders[name]))
    return turns


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Return the names in order, beginning with another one for each `by`."""
    start = by % len(names) if names else 0
    return [*names[start:], *names[:start]]


def summary(
    turns: Mapping[str, Sequence[Turn]], *, batch: int, baseline: str, limit: str, device_time: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each contender: medians, and medians of the ratios within each round.

    `speed_over_plain` is how many times as fast as the baseline, `time_over_limit` how many times the limit's time;
    either is None where there is nothing to compare with. Processor time means nothing where a device computes.
    """
    return [
        {
            "contender": name,
            "batch": batch,
            "ms_per_image": round(median(turn.run_ms for turn in own) / batch, 3),
            "images_per_s": round(1000 * batch / median(turn.run_ms for turn in own), 2),
            "cpu_ms_per_image": None if device_time else round(median(turn.cpu_ms for turn in own) / batch, 3),
            "speed_over_plain": _ratio(turns.get(baseline, ()), own),
            "time_over_limit": _ratio(own, turns.get(limit, ())),
            "turns_ms": [round(turn.run_ms, 3) for turn in own],
        }
        for name, own in turns.items()
    ]


def _ratio(above: Sequence[Turn], below: Sequence[Turn]) -> float | None:
    if not above or not below:
        return None
    return round(median(one.run_ms / other.run_ms for one, other in zip(above, below, strict=True)), 3)
