"""A machine that is made up: how fast each choice is there, and how its weather changes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.tuning.choice import Choice
from service.tuning.figures import Comparison, Figures, Pair

Speed = Callable[[Choice, int], float]
"""Images a second of a choice with so many requests in flight."""


@dataclass
class World:
    """A Measurer that computes what it would have measured, and keeps what it was asked."""

    speed: Speed
    noise: float = 0.0
    """Standard deviation of the logarithm of each figure."""
    concurrencies: tuple[int, ...] = (1, 8)
    faults: Callable[[Choice], str | None] = lambda _: None
    seed: int = 0
    asked: list[tuple[Choice, Choice, tuple[str, ...], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def compare(self, best: Choice, other: Choice, *, models: Sequence[str], rounds: int) -> Comparison:
        self.asked.append((best, other, tuple(models), rounds))
        fault = self.faults(other)
        if fault is not None:
            return Comparison((), fault)
        return Comparison([{each: self._pair(best, other, each) for each in self.concurrencies} for _ in range(rounds)])

    def _pair(self, best: Choice, other: Choice, concurrency: int) -> Pair:
        weather = math.exp(self._random.gauss(0, 0.5))  # is the same for both
        return Pair(*(self._figures(each, concurrency, weather) for each in (best, other)))

    def _figures(self, choice: Choice, concurrency: int, weather: float) -> Figures:
        rate = self.speed(choice, concurrency) * weather * math.exp(self._random.gauss(0, self.noise))
        latency_ms = 1000 * concurrency / rate if rate else math.inf
        return Figures(rate, latency_ms, 2 * latency_ms)
