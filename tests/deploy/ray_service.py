"""The service behind Ray's proxy as tests ask it, and clients that load it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import PATIENCE_S
from tests.service.pictures import photo

JPEG = {"Content-Type": "image/jpeg"}
PHOTOS = [photo("JPEG", seed=seed) for seed in range(4)]


@dataclass
class RayService:
    """The cluster's process, and the service behind Ray's proxy."""

    popen: subprocess.Popen[str]
    port: int = 0

    def ask(self, *command: str) -> Any:
        """Have the cluster do something; returns what it says."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(" ".join(command) + "\n")
        self.popen.stdin.flush()
        return self.hear()

    def hear(self) -> Any:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, "the cluster's process ended; its errors are above"
        return json.loads(line)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def classify(self, picture: bytes, *, app: str = "", **options: Any) -> httpx.Response:
        url = self.url(f"{app}/v1/classify")
        return httpx.post(url, content=picture, headers=JPEG, timeout=PATIENCE_S, **options)

    def metrics(self, *, app: str = "") -> list[Any]:
        """Every sample of every replica."""
        text = httpx.get(self.url(f"{app}/metrics"), timeout=PATIENCE_S).text
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def metric(self, name: str, *, app: str = "", **labels: str) -> float:
        """The sum over all replicas of the samples with these labels."""
        return sum(
            sample.value
            for sample in self.metrics(app=app)
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def replicas(self, *, app: str = "") -> set[str]:
        """The names of the replicas, all of which said their metrics; none while one is silent."""
        samples = self.metrics(app=app)
        silent = sum(s.value for s in samples if s.name == "dat_replicas" and s.labels["shown"] == "false")
        return set() if silent else {s.labels["replica"] for s in samples if "replica" in s.labels}


class Load:
    """Clients that each send one request after the other, and check and count the answers."""

    def __init__(self, service: RayService, *, clients: int, app: str = "") -> None:
        self.ends: Counter[str] = Counter()
        self.took_s: list[float] = []
        self._service = service
        self._app = app
        self._right = [answer.json()["results"][0] for answer in map(service.classify, PHOTOS)]
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(clients)]

    def _send(self, number: int) -> None:
        photo, right = PHOTOS[number % len(PHOTOS)], self._right[number % len(PHOTOS)]
        while not self._stopping:
            sent_s = time.monotonic()
            try:
                end = self._end_of(self._service.classify(photo, app=self._app), right)
            except httpx.TimeoutException:
                end = "no answer"
            except httpx.TransportError:
                end = "broken connection"
            with self._changed:
                self.ends[end] += 1
                self.took_s.append(time.monotonic() - sent_s)
                self._changed.notify_all()

    @staticmethod
    def _end_of(answer: httpx.Response, right: Any) -> str:
        if answer.status_code == 200:
            return "right" if alike(answer.json()["results"][0], right) else "wrong"
        if answer.headers["content-type"] != "application/problem+json":
            return f"{answer.status_code} {answer.text}"
        come_back = " come back" if answer.headers.get("retry-after", "").isdecimal() else ""
        return f"{answer.status_code} {answer.json()['code']}{come_back}"

    def wait_for_more(self, count: int) -> None:
        """Return when so many more requests were answered."""
        with self._changed:
            enough = self.ends["right"] + count
            assert self._changed.wait_for(lambda: self.ends["right"] >= enough, PATIENCE_S), self.ends

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        """Have the clients send; at the end every one of them must have been answered."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping = True
            for thread in self._threads:
                thread.join(2 * PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), "a request never ended"


def alike(result: Any, right: Any) -> bool:
    """Whether two answers are the same but for the rounding of another batch size."""
    return all(
        mine["class_id"] == other["class_id"] and mine["score"] == pytest.approx(other["score"], abs=1e-4)
        for mine, other in zip(result["predictions"], right["predictions"], strict=True)
    )
