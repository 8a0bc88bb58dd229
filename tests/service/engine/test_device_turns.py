"""Who runs next on a device that engines share: shares of its time, priorities, and who leaves."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engine.device_turns import DeviceTurns, FairShares
from service.engine.turns import BULK_EVERY
from service.engine.types import Priority
from tests.service.engine.fakes import PATIENCE_S, FakeClock

INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK


class Line:
    """A device whose engines always want another run: simulates who runs, on a clock that only runs move.

    `wants` has how long each one's runs take, by its name and priority.
    """

    def __init__(self, wants: Mapping[tuple[str, Priority], float]) -> None:
        self.used_s = Counter[tuple[str, Priority]]()
        self.longest_wait_s = Counter[tuple[str, Priority]]()
        self._wants = wants
        self._clock = FakeClock()
        self._turns = DeviceTurns(clock=self._clock)
        self._contenders = {want: self._turns.join() for want in wants}

    def run(self, runs: int) -> None:
        """Let so many runs end; each engine wants its next as soon as its last has ended."""
        first, *rest = self._wants
        with ThreadPoolExecutor(len(self._wants)) as pool:
            self._turns.acquire(self._contenders[first], first[1])
            for want in rest:
                self._line_up(pool, want)
            running, since_s = first, dict.fromkeys(self._wants, self._clock())
            for _ in range(runs):
                self.longest_wait_s[running] = max(self.longest_wait_s[running], self._clock() - since_s[running])
                used_s = self._wants[running]
                self._clock.now_s += used_s
                self.used_s[running] += used_s
                self._turns.release(self._contenders[running], running[1], used_s, running[1])
                after = next(want for want, each in self._contenders.items() if each is self._turns._holder)
                since_s[running] = self._clock()
                if after != running:
                    self._line_up(pool, running)
                running = after
            for contender in self._contenders.values():
                contender.leave()

    def _line_up(self, pool: ThreadPoolExecutor, want: tuple[str, Priority]) -> None:
        """Have an engine wait, and return when it does."""
        pool.submit(self._turns.acquire, self._contenders[want], want[1])
        while self._contenders[want] not in self._turns._waiting:
            time.sleep(0)


def test_a_model_fifty_times_slower_gets_half_the_device_and_not_more() -> None:
    fast, slow = ("fast", INTERACTIVE), ("slow", INTERACTIVE)
    line = Line({fast: 0.01, slow: 0.5})
    line.run(1000)
    assert line.used_s[fast] / line.used_s.total() == pytest.approx(0.5, abs=0.05)
    assert line.longest_wait_s[fast] <= 0.5 + 1e-9  # for one run of the slow one
    assert line.longest_wait_s[slow] <= 0.5 + 0.01 + 1e-9


def test_bulk_work_of_one_model_leaves_most_of_the_device_to_interactive_work_of_another() -> None:
    line = Line({("asked", INTERACTIVE): 0.05, ("filling", BULK): 0.05, ("filling too", BULK): 0.05})
    line.run(2000)
    asked = line.used_s["asked", INTERACTIVE] / line.used_s.total()
    assert asked == pytest.approx((BULK_EVERY - 1) / BULK_EVERY, abs=0.02)


@pytest.mark.parametrize("engines", [1, 2, 5])
def test_shares_are_equal_and_weights_count(engines: int) -> None:
    shares = FairShares[int]()
    had = Counter[int]()
    for _ in range(3000):
        key = shares.least(range(engines + 1))
        had[key] += 1
        shares.charge(key, 1.0, weight=3.0 if key == engines else 1.0)
    assert had[engines] == pytest.approx(3000 * 3 / (engines + 3), rel=0.02)
    for key in range(engines):
        assert had[key] == pytest.approx(3000 / (engines + 3), rel=0.02)


def test_who_was_idle_saves_nothing_up() -> None:
    shares = FairShares[str]()
    for _ in range(100):
        shares.charge("busy", 1.0)
    taken = []
    for _ in range(10):
        key = shares.least(("busy", "idle"))
        taken.append(key)
        shares.charge(key, 1.0)
    assert taken.count("idle") <= 6


def test_a_device_is_shared_while_others_had_it_a_moment_ago() -> None:
    clock = FakeClock()
    turns = DeviceTurns(clock=clock)
    first, second = turns.join(), turns.join()
    for _ in range(2):
        with first.turn(INTERACTIVE):
            assert not first.shares
    with second.turn(BULK):
        assert second.shares
    assert first.shares
    clock.now_s += 1.5
    assert not first.shares
    with first.turn(BULK):
        pass
    first.leave()
    assert not second.shares


def test_an_engine_has_the_device_alone_and_the_next_is_woken() -> None:
    turns = DeviceTurns()
    inside, order = threading.Semaphore(1), list[int]()

    def run(number: int) -> None:
        contender = turns.join()
        for _ in range(50):
            with contender.turn(INTERACTIVE):
                assert inside.acquire(blocking=False)
                order.append(number)
                inside.release()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert Counter(order) == dict.fromkeys(range(4), 50)


def test_an_engine_that_has_more_to_run_and_then_has_not_passes_the_device_on() -> None:
    turns = DeviceTurns()
    first, second = turns.join(), turns.join()
    with first.turn(INTERACTIVE, more=lambda: INTERACTIVE):
        pass
    had = threading.Thread(target=lambda: turns.acquire(second, INTERACTIVE))
    had.start()
    while second not in turns._waiting:
        time.sleep(0)
    first.pass_on()
    had.join(PATIENCE_S)
    assert not had.is_alive()
    first.pass_on()  # which it has not any more
    assert turns._holder is second


def test_an_engine_that_leaves_in_a_run_that_never_ends_gives_its_turn_back() -> None:
    turns = DeviceTurns()
    hanging, waiting = turns.join(), turns.join()
    began, may_end, had = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        with hanging.turn(INTERACTIVE):
            began.set()
            assert may_end.wait(PATIENCE_S)

    def wait() -> None:
        with waiting.turn(BULK):
            had.set()

    threads = [threading.Thread(target=hang), threading.Thread(target=wait)]
    threads[0].start()
    assert began.wait(PATIENCE_S)
    threads[1].start()
    hanging.leave()
    assert had.wait(PATIENCE_S)
    may_end.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    with turns.join().turn(INTERACTIVE):  # the one that ended late has taken nobody's turn away
        pass
