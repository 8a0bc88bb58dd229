"""The clients against a real server, and their arithmetic."""

from __future__ import annotations

import asyncio
import itertools
import math
import socket

import pytest

from service.model.directory import ModelDirectory
from service.tuning.bench import rendered
from service.tuning.client import ServerLost, drive, figures
from service.tuning.pictures import made
from tests.integration.conftest import service_thread
from tests.service import tiny_model

CONCURRENCY = 4


def ask(port: int, *, images: list[bytes], models: tuple[str, ...] = (tiny_model.NAME,)) -> tuple[object, ...]:
    requests = itertools.cycle(rendered(images, models))
    found = asyncio.run(drive(port, requests, concurrency=CONCURRENCY, lead_s=0.05, window_s=0.2))
    return found.images_per_s, found.p50_ms, found.p95_ms, found.failed


def test_a_server_is_asked_by_so_many_at_a_time_and_all_its_answers_count(model: ModelDirectory) -> None:
    with service_thread(model) as threaded:
        rate, p50_ms, p95_ms, failed = ask(threaded.port, images=made([(80, 60), (60, 90)]))
        sizes = threaded.session.sizes
    assert (failed, 0 < p50_ms <= p95_ms < math.inf) == (0, True)  # type: ignore[operator]
    assert rate > 0  # type: ignore[operator]
    assert sum(sizes) >= 2 * CONCURRENCY


def test_what_is_no_answer_counts_as_failed(model: ModelDirectory) -> None:
    with service_thread(model) as threaded:
        assert ask(threaded.port, images=[b"no image"])[0] == 0
        mixed = ask(threaded.port, images=[*made([(80, 60)]), b"no image"])
        unknown = ask(threaded.port, images=made([(80, 60)]), models=("nobody",))
    assert mixed[0] > 0  # type: ignore[operator]
    assert mixed[3] > 0  # type: ignore[operator]
    assert unknown[0] == 0


def test_a_server_that_is_gone_is_noticed() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerLost):
        ask(port, images=[b"x"])


def test_a_window_lasts_from_one_answer_to_another() -> None:
    ended = [(0.5, 0.1, 200), (0.9, 0.1, 200), (1.4, 0.2, 200), (1.9, 0.3, 200), (2.4, 0.4, 429), (2.9, 0.5, 200)]
    found = figures(ended, began_s=1.0)
    assert found.images_per_s == pytest.approx(3 / 2.0)
    assert (found.p50_ms, found.p95_ms, found.failed) == (300, 500, 1)
    assert figures(ended[2:], began_s=1.0).images_per_s == pytest.approx(2 / 1.5)
    assert figures([(1.5, 0.1, 429)] * 3, began_s=1.0).images_per_s == 0
