"""The load generator, a process of its own: `python -m benchmarks.load --port P --file PHOTO ...`, JSON on stdout.

Closed loop (`--concurrency`): so many clients, each asking again as soon as it is answered; for throughput. Open loop
(`--rate`): requests at the times of a seeded Poisson process, whatever became of the ones before; for latency and
overload. A latency is taken from the moment that the request was due, not from when it could be sent, so that a server
that stalls cannot hide it by stalling the generator (no coordinated omission).

The generator shares the machine's cores with what it measures: requests are rendered once, answers are parsed no
further than their status and length, and its own CPU time is part of the report, as is the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.connections import Clients, Request
from benchmarks.processes import ThreadUse, cpu_seconds, thread_uses
from benchmarks.shapes import FORMS, PRIORITIES, RAW, Shape

ANSWERED = 200


@dataclass(slots=True)
class Window:
    """The part of a run that counts, after the warm-up; CPU times are read at its edges."""

    began_s: float
    ended_s: float
    server_pid: int | None
    requests: list[Request] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    threads: dict[str, ThreadUse] = field(default_factory=dict)
    """Of the server."""

    def read_cpu(self) -> dict[str, float]:
        """Return the CPU seconds that this process, and the server with its children, have used."""
        used = {"generator": time.process_time()}
        if self.server_pid is not None:
            used["server"] = cpu_seconds(self.server_pid)
        return used

    async def watch(self) -> None:
        """Note the CPU times that fall into the window."""
        await asyncio.sleep(self.began_s - time.monotonic())
        before, threads_before = self.read_cpu(), self.read_threads()
        await asyncio.sleep(self.ended_s - time.monotonic())
        self.cpu_s = {name: used_s - before[name] for name, used_s in self.read_cpu().items()}
        none = ThreadUse(0.0, 0)
        self.threads = {name: use - threads_before.get(name, none) for name, use in self.read_threads().items()}

    def read_threads(self) -> dict[str, ThreadUse]:
        """Return what the threads of the server and its children have used, by name."""
        return {} if self.server_pid is None else thread_uses(self.server_pid)


async def closed_loop(address: tuple[str, int], shape: Shape, window: Window, *, concurrency: int) -> None:
    """Keep `concurrency` requests in flight until the window ends; those then in flight are waited for."""
    loop = asyncio.get_running_loop()
    source = shape.requests()
    in_flight = concurrency
    all_ended = loop.create_future()

    def ask() -> None:
        data, priority = next(source)
        clients.send(Request(data, priority, time.monotonic()))

    def ended(request: Request) -> None:
        nonlocal in_flight
        window.requests.append(request)
        if time.monotonic() < window.ended_s:
            ask()
            return
        in_flight -= 1
        if in_flight == 0:
            all_ended.set_result(None)

    clients = Clients(address, most=concurrency, on_end=ended)
    for _ in range(concurrency):
        ask()
    await asyncio.gather(window.watch(), all_ended)
    await clients.close()


def poisson_times_s(rate_per_s: float, duration_s: float, seed: int) -> list[float]:
    """Return the times of a Poisson process from 0 to `duration_s`."""
    rng = random.Random(seed)
    times: list[float] = []
    now_s = rng.expovariate(rate_per_s)
    while now_s < duration_s:
        times.append(now_s)
        now_s += rng.expovariate(rate_per_s)
    return times


async def open_loop(
    address: tuple[str, int], shape: Shape, window: Window, *, rate_per_s: float, most_connections: int
) -> None:
    """Send each request when it is due, until the window ends; all are waited for."""
    started_s = time.monotonic()
    times_s = poisson_times_s(rate_per_s, window.ended_s - started_s, shape.seed)
    left = len(times_s)
    all_ended = asyncio.Event()

    def ended(request: Request) -> None:
        nonlocal left
        window.requests.append(request)
        left -= 1
        if left == 0:
            all_ended.set()

    clients = Clients(address, most=most_connections, on_end=ended)
    watching = asyncio.ensure_future(window.watch())
    for after_s, (data, priority) in zip(times_s, shape.requests(), strict=False):
        due_s = started_s + after_s
        ahead_s = due_s - time.monotonic()
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        clients.send(Request(data, priority, due_s))
    if times_s:
        await all_ended.wait()
    await watching
    await clients.close()


def percentiles_ms(latencies_ms: Sequence[float]) -> dict[str, float | int]:
    """Return count, mean, p50, p90, p99 and max; percentiles are values that were measured, by the nearest rank."""
    ordered = sorted(latencies_ms)
    if not ordered:
        return {"count": 0}
    ranks = {f"p{share}": ordered[math.ceil(share / 100 * len(ordered)) - 1] for share in (50, 90, 99)}
    figures = {"mean": statistics.fmean(ordered), **ranks, "max": ordered[-1]}
    return {"count": len(ordered), **{name: round(value, 3) for name, value in figures.items()}}


def report(window: Window, *, images: int = 1) -> dict[str, Any]:
    """Return what happened in the window, in which each request had so many images.

    Rates count the answers that arrived in it, and goodput their images; latencies are of the requests that were due in
    it. An answer is a request's: what it costs is what all of its images do. Images that were worked on are those of
    every answer, by the share of its time that lies in the window: few large requests end in a window, by chance one
    more or less.
    """
    duration_s = window.ended_s - window.began_s
    arrived = Counter(
        request.status for request in window.requests if window.began_s <= request.ended_s < window.ended_s
    )
    due = [request for request in window.requests if window.began_s <= request.due_s < window.ended_s]
    accepted = {
        priority: percentiles_ms([r.latency_ms for r in due if r.status == ANSWERED and r.priority == priority])
        for priority in PRIORITIES
    }
    statuses = sorted({request.status for request in due} - {ANSWERED})
    refused = {
        str(status): {
            **percentiles_ms([r.latency_ms for r in due if r.status == status]),
            "without_retry_after": sum(not r.has_retry_after for r in due if r.status == status),
        }
        for status in statuses
    }
    answered = arrived[ANSWERED]
    worked_on = images * sum(_share_in(window, r) for r in window.requests if r.status == ANSWERED)
    return {
        "duration_s": round(duration_s, 3),
        "offered_per_s": round(len(due) / duration_s, 3),
        "goodput_images_per_s": round(answered * images / duration_s, 3),
        "images_worked_on_per_s": round(worked_on / duration_s, 3),
        "accepted_ms": {priority: figures for priority, figures in accepted.items() if figures["count"]},
        "refused_ms": refused,
        "cpu_share": {name: round(used_s / duration_s, 4) for name, used_s in window.cpu_s.items()},
        "cpu_ms_per_answer": {
            name: round(used_s * 1000 / answered, 4) for name, used_s in window.cpu_s.items() if answered
        },
        "server_threads": {name: _used(use, answered) for name, use in window.threads.items() if use.cpu_s > 0},
    }


def _used(use: ThreadUse, answers: int) -> dict[str, float]:
    """Return what a thread has used in all and, where there were any, by answer."""
    figures = {"cpu_s": round(use.cpu_s, 6), "switches": use.switches}
    if not answers:
        return figures
    by_answer = {"cpu_ms": round(use.cpu_s * 1000 / answers, 4), "switches": round(use.switches / answers, 2)}
    return figures | {f"{name}_per_answer": figure for name, figure in by_answer.items()}


def _share_in(window: Window, request: Request) -> float:
    within_s = min(request.ended_s, window.ended_s) - max(request.due_s, window.began_s)
    return max(within_s, 0.0) / (request.ended_s - request.due_s)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the load that the command line asks for and return its report."""
    shape = Shape(
        host=arguments.host,
        files=[path.read_bytes() for path in arguments.file],
        target=arguments.target,
        bulk_share=arguments.bulk_share,
        seed=arguments.seed,
        form=arguments.form,
        images=arguments.images,
    )
    address = (arguments.host, arguments.port)
    began_s = time.monotonic() + arguments.warm_up_s
    window = Window(began_s, began_s + arguments.duration_s, arguments.server_pid)
    if arguments.rate is not None:
        load = open_loop(address, shape, window, rate_per_s=arguments.rate, most_connections=arguments.most_connections)
    else:
        load = closed_loop(address, shape, window, concurrency=arguments.concurrency)
    await _unless_a_callback_fails(load)
    return report(window, images=shape.images)


async def _unless_a_callback_fails(load: Coroutine[Any, Any, None]) -> None:
    """Run the load; an exception in a protocol's callback, which the loop would only log, ends it."""
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not failed.done():
            failed.set_exception(context.get("exception") or RuntimeError(context["message"]))

    loop.set_exception_handler(fail)
    running = asyncio.ensure_future(load)
    await asyncio.wait((running, failed), return_when=asyncio.FIRST_COMPLETED)
    await (failed if failed.done() else running)


def main() -> None:
    """Run one load and print its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", default="/v1/classify", help="path and query")
    parser.add_argument("--file", type=Path, nargs="+", required=True, help="images, sent in turn")
    parser.add_argument("--form", choices=FORMS, default=RAW, help="how images are sent (default: raw, one a request)")
    parser.add_argument("--images", type=int, default=1, help="images of a request (default: 1)")
    loop = parser.add_mutually_exclusive_group(required=True)
    loop.add_argument("--concurrency", type=int, help="closed loop: requests in flight")
    loop.add_argument("--rate", type=float, help="open loop: requests per second")
    parser.add_argument("--warm-up-s", type=float, default=1.0)
    parser.add_argument("--duration-s", type=float, default=10.0)
    parser.add_argument("--bulk-share", type=float, default=0.0, help="share of the requests with priority bulk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-connections", type=int, default=2048)
    parser.add_argument("--server-pid", type=int, help="process whose CPU use, with its children's, is reported")
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
