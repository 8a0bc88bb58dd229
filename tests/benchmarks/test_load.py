"""The load generator against a server of a few lines, which does what a test says."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.connections import Request as AskedFor
from benchmarks.load import Window, closed_loop, open_loop, percentiles_ms, poisson_times_s, report
from benchmarks.shapes import Shape
from service.calls.in_flight import InFlight, Work
from service.http.bodies.uploads import Limits, plan_body

Answer = Callable[[int], Awaitable[bytes]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
BARE_REFUSAL = b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n"
SHAPE = Shape(host="127.0.0.1", files=[b"photo", b"another photo"])


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[tuple[str, int], list[bytes]]]:
    """Answer the n-th request with `answer(n)`, and close where that says so or is empty."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split()[0]))
                heads.append(head)
                data = await answer(len(heads) - 1)
                writer.write(data)
                if not data or b"Connection: close" in data:
                    break
        except asyncio.IncompleteReadError:
            pass  # the generator is done
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2], heads


def window(duration_s: float = 0.5) -> Window:
    now_s = time.monotonic()
    return Window(now_s, now_s + duration_s, server_pid=None)


async def run(answer: Answer, *, concurrency: int = 3, duration_s: float = 0.5) -> tuple[dict[str, Any], list[bytes]]:
    async with serving(answer) as (address, heads):
        measured = window(duration_s)
        await closed_loop(address, SHAPE, measured, concurrency=concurrency)
        return report(measured), heads


async def test_closed_loop_counts_every_answer_and_keeps_its_connections() -> None:
    async def answer(_: int) -> bytes:
        return OK

    measured, heads = await run(answer)
    answered = measured["accepted_ms"]["interactive"]["count"]
    assert len(heads) - 3 <= answered <= len(heads)
    assert measured["refused_ms"] == {}
    assert measured["cpu_share"]["generator"] > 0
    assert b"POST /v1/classify?priority=interactive HTTP/1.1" in heads[0]


async def test_refusals_are_told_apart_and_missing_retry_after_is_noticed() -> None:
    async def answer(number: int) -> bytes:
        return (OK, REFUSED, BARE_REFUSAL)[number % 3]

    measured, _ = await run(answer)
    refused = measured["refused_ms"]["429"]
    assert 0 < refused["without_retry_after"] < refused["count"]
    assert measured["accepted_ms"]["interactive"]["count"] > 0


async def test_broken_connection_is_a_failure_and_the_next_request_gets_another() -> None:
    async def answer(number: int) -> bytes:
        return b"" if number % 2 else OK

    measured, heads = await run(answer)
    assert measured["refused_ms"]["0"]["count"] > 0
    assert measured["accepted_ms"]["interactive"]["count"] > 1
    assert len(heads) > 4


async def test_nobody_listening_ends_the_run_with_failures_alone() -> None:
    measured = window(0.05)
    await closed_loop(("127.0.0.1", 1), SHAPE, measured, concurrency=2)
    assert {request.status for request in measured.requests} == {0}


async def test_latency_counts_from_when_a_request_was_due_though_it_could_not_be_sent() -> None:
    """One connection, and a server that stalls once: all that was due meanwhile has waited too."""
    going_on = asyncio.Event()

    async def answer(number: int) -> bytes:
        if number == 0:
            await going_on.wait()
        return OK

    async with serving(answer) as (address, _):
        measured = window(0.4)
        load = asyncio.create_task(open_loop(address, SHAPE, measured, rate_per_s=100, most_connections=1))
        asyncio.get_running_loop().call_later(0.3, going_on.set)
        await load
    stalled = [request for request in measured.requests if request.due_s < measured.began_s + 0.2]
    assert len(stalled) > 5
    assert all(request.latency_ms >= 100 for request in stalled)
    figures = report(measured)["accepted_ms"]["interactive"]
    assert figures["count"] == len(poisson_times_s(100, measured.ended_s - measured.began_s, 0))


async def test_priorities_are_mixed_as_asked_and_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[str]:
        source = Shape(host="h", files=[b"x"], bulk_share=0.3, seed=seed).requests()
        return [next(source)[1] for _ in range(1000)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1).count("bulk") == pytest.approx(300, abs=60)


def test_arrivals_are_a_seeded_poisson_process() -> None:
    times_s = poisson_times_s(50.0, 100.0, seed=3)
    assert times_s == poisson_times_s(50.0, 100.0, seed=3) != poisson_times_s(50.0, 100.0, seed=4)
    assert len(times_s) == pytest.approx(5000, rel=0.05)
    gaps = [after - before for before, after in itertools.pairwise(times_s)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


@pytest.mark.parametrize("form", ["form", "json"])
async def test_a_request_of_several_images_has_the_files_in_turn(form: str) -> None:
    (first, _), (second, _) = itertools.islice(Shape(host="h", files=[b"a", b"b"], form=form, images=3).requests(), 2)
    for request, images in ((first, [b"a", b"b", b"a"]), (second, [b"b", b"a", b"b"])):
        head, _, body = request.partition(b"\r\n\r\n")
        fields = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
        assert int(fields["Content-Length"]) == len(body)
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive(parts: Iterator[dict[str, Any]] = parts) -> dict[str, Any]:
            return next(parts)

        headers = {name.lower(): value for name, value in fields.items()}
        plan = plan_body(headers, Limits(10_000, max_images=3, receive_timeout_s=30.0))
        uploads = await plan.read(receive, Work(InFlight()))
        assert [bytes(upload.data) for upload in uploads] == images


def test_a_raw_body_is_one_image() -> None:
    with pytest.raises(ValueError, match="one image, not 2"):
        next(Shape(host="h", files=[b"a"], images=2).requests())


def test_images_are_counted_by_what_of_their_request_lies_in_the_window() -> None:
    """Of three requests of 8 images, one begins before the window and one ends after it; a fourth was refused."""
    measured = Window(10.0, 14.0, server_pid=None)
    for due_s, ended_s, status in ((8.0, 12.0, 200), (12.0, 13.0, 200), (13.0, 17.0, 200), (11.0, 12.0, 429)):
        measured.requests.append(AskedFor(b"", "bulk", due_s, ended_s, status))
    figures = report(measured, images=8)
    assert figures["goodput_images_per_s"] == 2 * 8 / 4
    assert figures["images_worked_on_per_s"] == (0.5 + 1 + 0.25) * 8 / 4


def test_percentiles_are_measured_values_by_the_nearest_rank() -> None:
    figures = percentiles_ms([float(value) for value in range(100, 0, -1)])
    assert (figures["p50"], figures["p90"], figures["p99"], figures["max"]) == (50.0, 90.0, 99.0, 100.0)
    assert percentiles_ms([7.0])["p99"] == 7.0
    assert percentiles_ms([]) == {"count": 0}
