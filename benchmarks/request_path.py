"""The way of one request through the service: the modules that it enters, and its calls from one to another.

`python -m benchmarks.request_path` posts a photo to `/v1/classify` of an application in this process, with a model
that computes next to nothing, and prints what was called in every thread until the answer was there. It counts, and
measures no time, so that the same code gives the same figures on any machine.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import httpx

from benchmarks import null_model
from benchmarks.limits import photos
from service.http.app import create_app
from service.processes.trial import try_candidate
from service.serving.in_process import InProcessHosting
from service.serving.repository import ModelRepository
from service.settings import Settings
from service.telemetry.metrics import Metrics

_ROOT = "service."
_GENERATED = "<string>"
"""Where Python has the constructors of dataclasses from: to make a record hands nothing over."""
_WARM_UP = 3


class CallCounter:
    """Counts calls between the modules of the service while it is on, in all threads that begin after it was made."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.crossings: Counter[tuple[str, str]] = Counter()
        """Calls by (calling module, called function); what of others lies between the two is passed over."""
        self._is_on = False
        self._seen: set[FrameType] = set()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Look at every call of this thread and of those that begin meanwhile."""
        threading.setprofile(self._look)
        sys.setprofile(self._look)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        if not self._is_on or event != "call" or frame in self._seen:  # a coroutine is called once, and resumed often
            return
        called = _module_of(frame)
        if not called.startswith(_ROOT) or frame.f_code.co_filename == _GENERATED:
            return
        self._seen.add(frame)
        self.modules.add(called)
        caller = frame.f_back
        while caller is not None and not _module_of(caller).startswith(_ROOT):
            caller = caller.f_back
        calling = _module_of(caller) if caller is not None else ""
        if calling and calling != called:
            self.crossings[calling, f"{called}.{frame.f_code.co_qualname}"] += 1


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


async def count_calls(root: Path) -> CallCounter:
    """Return the calls of one request, after a few that are not counted; a model is written below `root`."""
    null_model.write(root)
    settings = Settings(repository=root, device="cpu", threads=1, decode_threads=1, batch_buckets=(1,), explain=False)
    repository, metrics = ModelRepository(settings), Metrics()
    counter = CallCounter()
    with counter.installed():
        hosting = InProcessHosting(settings, repository.at_start(), repository, metrics=metrics, prove=try_candidate)
        app = create_app(settings, hosting, metrics=metrics, on_failed_start=_raise)
        async with app.router.lifespan_context(app):
            await app.state.service.started.wait()
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                for _ in range(_WARM_UP):
                    await _ask(client)
                with counter.counting():
                    await _ask(client)
    return counter


async def _ask(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/classify", content=photos()[0], headers={"Content-Type": "image/jpeg"})
    response.raise_for_status()


def _raise(error: Exception) -> None:
    raise error


def main() -> None:
    """Count, and print."""
    with tempfile.TemporaryDirectory() as folder:
        counter = asyncio.run(count_calls(Path(folder)))
    for (calling, called), count in sorted(counter.crossings.items()):
        print(f"{count:3}  {calling} -> {called}")
    print(f"{len(counter.modules)} modules, {counter.crossings.total()} calls from one to another")


if __name__ == "__main__":
    main()
