"""The search: one change after another is tried beside the best so far, and kept where it is better beyond noise.

It knows no server: a Measurer compares. It begins with the defaults beside themselves, which says what noise is; it
ends with the choice beside the defaults, in rounds of their own, for the best of many tries is partly luck. A choice
that does not hold there is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.errors import StartupError
from service.tuning.choice import Change, Choice
from service.tuning.figures import Comparison, Goal, Noise, Verdict


class Measurer(Protocol):
    """Compares two choices side by side."""

    async def compare(self, best: Choice, other: Choice, *, models: Sequence[str], rounds: int) -> Comparison:
        """Serve `models` by both, and ask both in turn for some rounds.

        Where the other cannot be served, the comparison says why. Raises StartupError where the best cannot.
        """
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """A change to try, by asking these models."""

    change: Change
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one comparison."""

    tried: str
    comparison: Comparison
    verdict: Verdict | None
    """None where there was nothing to measure."""
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has chosen."""

    choice: Choice
    """The defaults, where nothing is better."""
    candidate: Choice
    """What the search came to, before it was checked."""
    check: Trial | None
    """The candidate beside the defaults; None where it is the defaults."""


async def search(
    steps: Sequence[Step],
    measurer: Measurer,
    *,
    goal: Goal,
    models: tuple[str, ...],
    rounds: int,
    check_rounds: int,
    report: Callable[[Trial | None], None],
) -> Found:
    """Try the steps in their order, check the choice by asking all `models`, and return what holds.

    `report` is called after each comparison, with None for a step that was left out since it changes nothing. Raises
    StartupError where the defaults cannot be served, or answer nothing.
    """
    noise, best = Noise(goal), Choice()
    first = await measurer.compare(best, best, models=models, rounds=rounds)
    if first.fault is not None:
        raise StartupError(f"The service could not be measured as it is: {first.fault}")
    _check_answers(first)
    report(Trial("the defaults, twice", first, noise.judge_same(first)))
    for step in steps:
        other = best.with_change(step.change)
        if other == best:
            report(None)
            continue
        trial = _judged(str(step.change), await measurer.compare(best, other, models=step.models, rounds=rounds), noise)
        if trial.is_kept:
            best = other
        report(trial)
    if best == Choice():
        return Found(best, best, None)
    last = _judged(f"{best}", await measurer.compare(Choice(), best, models=models, rounds=check_rounds), noise)
    report(last)
    return Found(best if last.is_kept else Choice(), best, last)


def _judged(tried: str, comparison: Comparison, noise: Noise) -> Trial:
    if comparison.fault is not None:
        return Trial(tried, comparison, None)
    verdict = noise.judge(comparison)
    return Trial(tried, comparison, verdict, is_kept=verdict.is_better)


def _check_answers(comparison: Comparison) -> None:
    for each in comparison.rounds:
        for concurrency, pair in each.items():
            if not pair.best.images_per_s:
                raise StartupError(f"The service answered nothing with {concurrency} requests in flight.")
