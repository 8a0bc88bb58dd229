from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.access.key_limits import KeyLimits
from service.access.keys import ApiKey
from service.errors import ConcurrencyLimited, RateLimited

DIGEST = bytes(32)
LIMITED = (ApiKey.limited("fast", DIGEST, rate=4, burst=2), ApiKey.limited("few", DIGEST, concurrency=2))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shared() -> Iterator[int]:
    descriptor = KeyLimits.create_shared(LIMITED, workers=2)
    yield descriptor
    os.close(descriptor)


def test_burst_passes_and_then_the_rate(clock: Clock) -> None:
    limits = KeyLimits(LIMITED, clock=clock)
    passed = []
    for tick in range(100):  # 0.1 s each, while four a second may pass
        clock.now_s = 1000 + tick / 10
        try:
            limits.begin(0)()
        except RateLimited:
            continue
        passed.append(tick)
    assert passed[:2] == [0, 1]
    assert len(passed) == 2 + int(9.9 * 4)


def test_refusal_says_the_very_time_at_which_a_request_passes(clock: Clock) -> None:
    limits = KeyLimits(LIMITED, clock=clock)
    limits.begin(0)
    limits.begin(0)
    clock.now_s += 0.1
    with pytest.raises(RateLimited) as caught:
        limits.begin(0)
    assert caught.value.retry_after_s == pytest.approx(0.15)
    clock.now_s += caught.value.retry_after_s - 0.001
    with pytest.raises(RateLimited):
        limits.begin(0)
    clock.now_s += 0.001
    limits.begin(0)


def test_requests_in_flight_are_counted_until_they_end() -> None:
    limits = KeyLimits(LIMITED)
    end = limits.begin(1)
    limits.begin(1)
    with pytest.raises(ConcurrencyLimited):
        limits.begin(1)
    end()
    limits.begin(1)


def test_request_refused_for_one_limit_does_not_count_for_the_other(clock: Clock) -> None:
    limits = KeyLimits([ApiKey.limited("both", DIGEST, rate=1, burst=2, concurrency=1)], clock=clock)
    end = limits.begin(0)
    with pytest.raises(ConcurrencyLimited):
        limits.begin(0)
    end()
    limits.begin(0)()  # the burst's second
    with pytest.raises(RateLimited):
        limits.begin(0)
    clock.now_s += 1
    limits.begin(0)  # a request refused for its rate is not in flight


def test_workers_share_one_account(clock: Clock, shared: int) -> None:
    first, second = (
        KeyLimits(LIMITED, workers=2, worker=worker, descriptor=shared, clock=clock) for worker in range(2)
    )
    first.begin(0)
    second.begin(0)
    for limits in (first, second):
        with pytest.raises(RateLimited):
            limits.begin(0)
    end = first.begin(1)
    second.begin(1)
    with pytest.raises(ConcurrencyLimited):
        second.begin(1)
    end()
    second.begin(1)


def test_worker_that_has_ended_has_nothing_in_flight(shared: int) -> None:
    first, second = (KeyLimits(LIMITED, workers=2, worker=worker, descriptor=shared) for worker in range(2))
    first.begin(1)
    first.begin(1)
    second.clear_worker(0)
    second.begin(1)


def test_worker_killed_with_the_lock_leaves_it_free(shared: int) -> None:
    program = f"import fcntl, sys, signal; fcntl.lockf({shared}, fcntl.LOCK_EX); print(flush=True); signal.pause()"
    holder = subprocess.Popen([sys.executable, "-c", program], pass_fds=[shared], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.send_signal(signal.SIGKILL)
    KeyLimits(LIMITED, workers=2, descriptor=shared).begin(0)
    holder.wait()
    holder.stdout.close()


RACER = """
import sys
from service.errors import RateLimited
from service.access.key_limits import KeyLimits
from service.access.keys import ApiKey

worker, descriptor, burst = map(int, sys.argv[1:])
key = ApiKey.limited("k", bytes(32), rate=1, burst=burst)
limits = KeyLimits([key, key], workers=2, worker=worker, descriptor=descriptor, clock=lambda: 0.0)
passed = 0
print("ready", flush=True)
sys.stdin.readline()
try:
    while True:
        limits.begin(0)()
        passed += 1
except RateLimited:
    print(passed)
"""


def test_processes_together_pass_no_more_than_the_burst(shared: int) -> None:
    burst = 30_000
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(worker), str(shared), str(burst)],
            pass_fds=[shared], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for worker in range(2)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert sum(int(racer.communicate(timeout=60)[0]) for racer in racers) == burst
