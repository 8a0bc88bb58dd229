"""Requests that go on until they are told to stop, and what became of each."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import PATIENCE_S, Process
from tests.service.pictures import photo

PHOTO = photo("JPEG")
JPEG = {"Content-Type": "image/jpeg"}


class Load:
    """Clients that each send one request after the other, and count the ends by status and code."""

    def __init__(self, port: int, clients: int) -> None:
        self.ends: Counter[str] = Counter()
        self._url = f"http://127.0.0.1:{port}/v1/classify"
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def _send(self) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self._stopping:
                try:
                    answer = client.post(self._url, content=PHOTO, headers=JPEG)
                    end = "ok" if answer.status_code == 200 else f"{answer.status_code} {answer.json()['code']}"
                    if end == "ok":
                        assert answer.json()["results"][0]["predictions"]
                except httpx.TimeoutException:
                    end = "no answer"
                except httpx.TransportError:
                    end = "broken connection"
                with self._changed:
                    self.ends[end] += 1
                    self._changed.notify_all()

    def wait_for_more(self, end: str = "ok", count: int = 20) -> None:
        """Return when so many more requests have ended so."""
        with self._changed:
            enough = self.ends[end] + count
            assert self._changed.wait_for(lambda: self.ends[end] >= enough, PATIENCE_S), self.ends

    def stop(self) -> None:
        """Let every client end its present request; asserts that it does."""
        self._stopping = True
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), "a request never ended"

    @classmethod
    @contextlib.contextmanager
    def on(cls, port: int, clients: int = 6) -> Iterator[Load]:
        load = cls(port, clients)
        for thread in load._threads:
            thread.start()
        try:
            yield load
        finally:
            load.stop()


def pid_of(process: Process, name: str) -> int:
    """The process that fills a place now, as far as the log was read."""
    return [int(line["pid"]) for line in process.lines if line["message"] == "started" and line["name"] == name][-1]


def wait_for_process(process: Process, name: str) -> None:
    """Return when the supervisor has said that a new process of that name is ready."""
    while process.wait_for("process ready")["name"] != name:
        pass


def wait_for_exit(pidfd: int) -> None:
    """Return when the process behind a pidfd has ended, whoever's child it is."""
    assert select.select([pidfd], [], [], PATIENCE_S)[0], "a process goes on"


def until(holds: Callable[[], bool]) -> None:
    """Ask, over HTTP, until something holds."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_s, "it never came to hold"


def metric(port: int, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, as one worker shows it."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
