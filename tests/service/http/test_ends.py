"""Every way to end a request early, in every stage that it can be in: the documented answer, at once, and no leak.

The stages are held by test doubles, one at a time, and a request is ended when it is known to be in one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message

from service.calls import inference
from service.calls.in_flight import Work
from service.errors import NotReady
from service.model.directory import ModelDirectory
from tests.service.conftest import PATIENCE_S, GatedSession, Served, serving, until
from tests.service.pictures import photo

PHOTO = photo("PNG")
DISCONNECT: Message = {"type": "http.disconnect"}
JSON_BODY = json.dumps({"images": [base64.b64encode(PHOTO).decode()]}).encode()
MULTIPART = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + PHOTO + b"\r\n--b--\r\n"
V2 = "/v2/models/tiny/infer"
V2_FILE = {"content-type": "application/octet-stream", "inference-header-content-length": "0"}


@dataclass(frozen=True)
class Ask:
    """What is asked, and its body."""

    path: str
    headers: dict[str, str]
    body: bytes


RAW = Ask("/v1/classify", {"content-type": "image/png"}, PHOTO)
ASKS = {
    "raw": RAW,
    "multipart": Ask("/v1/features", {"content-type": "multipart/form-data; boundary=b"}, MULTIPART),
    "json": Ask("/v1/explain", {"content-type": "application/json"}, JSON_BODY),
    "picture": Ask("/v1/explain", {"content-type": "image/png", "accept": "image/png"}, PHOTO),
    "v2": Ask(V2, {**V2_FILE, "x-image-datatype": "BYTES"}, PHOTO),
}


class Exchange:
    """One request as an ASGI server would pass it on, whose body and whose client's going are the test's."""

    def __init__(self, app: FastAPI, ask: Ask, *, query: str = "") -> None:
        self.path = ask.path
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.is_read = asyncio.Event()
        """Set when the application waits for more of the body than there is."""
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.answered = asyncio.Event()
        headers = ask.headers | {"content-length": str(len(ask.body)), "x-request-id": "its-id"}
        self.scope: dict[str, Any] = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": ask.path, "raw_path": ask.path.encode(), "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1), "server": ("service", 80), "root_path": "", "state": {},
        }  # fmt: skip
        self.task = asyncio.create_task(app(self.scope, self._receive, self._send))

    def send(self, body: bytes, *, more: bool = False) -> None:
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    @property
    def work(self) -> Work:
        work: Work = self.scope["state"]["context"].work
        return work

    async def _receive(self) -> Message:
        if self.incoming.empty():
            self.is_read.set()
        return await self.incoming.get()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]
            self.answered.set()

    async def end(self) -> None:
        """Return when it was answered and is over."""
        async with asyncio.timeout(PATIENCE_S):
            await self.answered.wait()
            self.incoming.put_nowait(DISCONNECT)  # whoever reads what the client still sends
            await self.task

    def assert_told(self, status: int, code: str) -> None:
        """Assert that the answer is the documented one."""
        assert self.status == status
        assert self.headers["x-request-id"] == "its-id"
        assert ("retry-after" in self.headers) is (status == 503)
        told = json.loads(self.body)
        if self.path.startswith("/v2"):
            assert self.headers["content-type"] == "application/json"
            assert list(told) == ["error"]
        else:
            assert self.headers["content-type"] == "application/problem+json"
            assert (told["status"], told["code"], told["request_id"]) == (status, code, "its-id")


@dataclass(frozen=True)
class HeldImage:
    """An image source whose decoding lasts for as long as a test likes."""

    index: int
    write: Callable[..., Any]


class Hold:
    """Holds threads that come to it until it is let go."""

    def __init__(self) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls the same, after the hold."""

        def held(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            assert self.let_go.wait(PATIENCE_S)
            return call(*args, **kwargs)

        return held

    def hold_decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hold each image when its thread has begun to write into its slot."""
        decode_one = inference._decode_one

        def decode(image: Any, *rest: Any) -> Any:
            return decode_one(HeldImage(image.index, self.before(image.write)), *rest)

        monkeypatch.setattr(inference, "_decode_one", decode)

    async def is_reached(self) -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, self.reached.wait, PATIENCE_S)


Stage = Callable[[Served, GatedSession, Hold, pytest.MonkeyPatch], Awaitable[Exchange]]


def upload(form: str) -> Stage:
    async def stage(served: Served, _: GatedSession, __: Hold, ___: pytest.MonkeyPatch) -> Exchange:
        exchange = Exchange(served.app, ASKS[form])
        exchange.send(ASKS[form].body[:20], more=True)
        async with asyncio.timeout(PATIENCE_S):
            await exchange.is_read.wait()
        return exchange

    return stage


def whole(served: Served, form: str) -> Exchange:
    exchange = Exchange(served.app, ASKS[form])
    exchange.send(ASKS[form].body)
    return exchange


def decoding(form: str) -> Stage:
    async def stage(served: Served, _: GatedSession, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> Exchange:
        hold.hold_decoding(monkeypatch)
        exchange = whole(served, form)
        await hold.is_reached()
        return exchange

    return stage


async def waiting_for_a_decoding_thread(
    served: Served, _: GatedSession, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> Exchange:
    del monkeypatch
    pool = served.app.state.service.decode_pool
    for _thread in range(served.app.state.service.settings.decode_thread_count):
        pool.run(0, hold.before(int))
    exchange = whole(served, "raw")
    await until(lambda: served.engine.slots_in_use)
    return exchange


def running(form: str) -> Stage:
    async def stage(served: Served, session: GatedSession, _: Hold, __: pytest.MonkeyPatch) -> Exchange:
        session.close()
        exchange = whole(served, form)
        await session.run_began()
        return exchange

    return stage


def queued(form: str) -> Stage:
    async def stage(served: Served, session: GatedSession, _: Hold, __: pytest.MonkeyPatch) -> Exchange:
        session.close()
        whole(served, "multipart")
        await session.run_began()
        exchange = whole(served, form)
        await until(lambda: served.engine.queue_depth == 2)
        return exchange

    return stage


def in_thread(form: str, *, of: str) -> Stage:
    """Reading JSON, or making an answer, in a thread of the event loop's own."""

    async def stage(served: Served, _: GatedSession, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> Exchange:
        async def to_thread(call: Callable[..., Any], *args: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(None, hold.before(call), *args)

        monkeypatch.setattr("service.calls.large.THREAD_FROM_BYTES", 0)
        monkeypatch.setattr(f"service.{of}.asyncio.to_thread", to_thread)
        exchange = whole(served, form)
        await hold.is_reached()
        return exchange

    return stage


async def drawing(served: Served, _: GatedSession, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    monkeypatch.setattr("service.http.routes.explain._picture", hold.before(lambda *_: b""))
    exchange = whole(served, "picture")
    await hold.is_reached()
    return exchange


STAGES: dict[str, Stage] = {
    **{f"upload, {form}": upload(form) for form in ASKS},
    "reading JSON": in_thread("json", of="http.bodies.uploads"),
    "waiting for a decoding thread": waiting_for_a_decoding_thread,
    **{f"decoding, {form}": decoding(form) for form in ASKS},
    "in the queue": queued("raw"),
    "in the queue, v2": queued("v2"),
    "running": running("raw"),
    "running, explain": running("json"),
    "running, v2": running("v2"),
    "making the answer": in_thread("multipart", of="calls.large"),
    "making the answer, v2": in_thread("v2", of="calls.large"),
    "drawing": drawing,
}


def deadline_passes(served: Served, exchange: Exchange) -> None:
    del served
    exchange.work.due_by(time.monotonic())


def drain_time_passes(served: Served, exchange: Exchange) -> None:
    del exchange
    served.app.state.service.in_flight.give_up()


def client_goes(served: Served, exchange: Exchange) -> None:
    del served
    exchange.incoming.put_nowait(DISCONNECT)


ENDS = {
    "deadline": (deadline_passes, 504, "deadline_exceeded"),
    "drain": (drain_time_passes, 503, "not_ready"),
    "client": (client_goes, 499, "cancelled"),
}


async def assert_left_once(served: Served) -> None:
    """Assert that every request has left what it kept, and none twice: then it would never again be without any."""
    (asked,) = served.hosting.models.served
    for _ in range(2):
        async with asyncio.timeout(PATIENCE_S):
            await asked.wait_unused()
        asked.keep()
        asked.leave()


@contextlib.asynccontextmanager
async def held(model: ModelDirectory) -> AsyncIterator[tuple[Served, GatedSession, Hold]]:
    session, hold = GatedSession(), Hold()
    async with serving(model, session, decode_threads=2, batch_buckets="1") as served:
        try:
            yield served, session, hold
        finally:
            hold.let_go.set()
            session.gate.set()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("end", ENDS)
async def test_request_that_is_ended_in_a_stage_gets_its_answer_at_once_and_leaves_nothing(
    model: ModelDirectory, monkeypatch: pytest.MonkeyPatch, stage: str, end: str
) -> None:
    happens, status, code = ENDS[end]
    async with held(model) as (served, session, hold):
        exchange = await STAGES[stage](served, session, hold, monkeypatch)
        happens(served, exchange)
        await exchange.end()  # while the stage is still held: its thread, or the device, goes on
        exchange.assert_told(status, code)
        labels = {"route": exchange.scope["route"].path, "status": str(status), "code": code}
        assert served.sample("dat_requests_total", **labels) == 1
        counted = served.sample("dat_request_stage_seconds_total", stage="total")
        hold.let_go.set()
        session.gate.set()
        await until(lambda: not served.engine.slots_in_use and not served.sample("dat_abandoned_decodes"))
        await asyncio.sleep(0.01)
        await assert_left_once(served)
        if "queue" not in stage:  # where another request is answered
            assert served.sample("dat_request_stage_seconds_total", stage="total") == counted == 0


@pytest.mark.parametrize("stage", ["upload, raw", "upload, v2", "decoding, raw", "in the queue", "running, v2"])
async def test_request_whose_engine_dies_in_a_stage_is_503(
    model: ModelDirectory, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    async with held(model) as (served, session, hold):
        exchange = await STAGES[stage](served, session, hold, monkeypatch)
        served.engine._die("killed by a test")
        if stage.startswith("upload"):
            exchange.send(PHOTO[20:])
        hold.let_go.set()
        await exchange.end()
        exchange.assert_told(503, "not_ready")


@pytest.mark.parametrize("form", ["raw", "v2"])
@pytest.mark.parametrize("stage", [upload, decoding])
async def test_deadline_of_the_request_holds_while_it_is_sent_and_decoded(
    model: ModelDirectory, monkeypatch: pytest.MonkeyPatch, stage: Callable[[str], Stage], form: str
) -> None:
    ask = ASKS[form]
    async with held(model) as (served, _, hold):
        hold.hold_decoding(monkeypatch)
        began_s = time.monotonic()
        exchange = Exchange(served.app, ask, query="timeout_ms=150")
        exchange.send(ask.body[:20] if stage is upload else ask.body, more=stage is upload)
        async with asyncio.timeout(PATIENCE_S):
            await exchange.answered.wait()
        assert 0.15 <= time.monotonic() - began_s < PATIENCE_S / 2
        await exchange.end()
        exchange.assert_told(504, "deadline_exceeded")


async def test_deadline_inside_a_body_holds_from_when_it_was_read(
    model: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(PHOTO).decode()]}
    body = json.dumps({"inputs": [pixels], "parameters": {"timeout": 150_000}}).encode()
    async with held(model) as (served, _, hold):
        hold.hold_decoding(monkeypatch)
        exchange = Exchange(served.app, Ask(V2, {"content-type": "application/json"}, body))
        exchange.send(body)
        await exchange.end()
        exchange.assert_told(504, "deadline_exceeded")


@pytest.mark.parametrize("timeout_us", [10**30, 10**400])
async def test_deadline_inside_a_body_may_be_any_number_and_never_later_than_the_services(
    model: ModelDirectory, timeout_us: int
) -> None:
    pixels = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(PHOTO).decode()]}
    body = json.dumps({"inputs": [pixels], "parameters": {"timeout": timeout_us}}).encode()
    async with held(model) as (served, _, __):
        exchange = Exchange(served.app, Ask(V2, {"content-type": "application/json"}, body))
        exchange.send(body)
        await exchange.end()
        assert exchange.status == 200


async def test_stuck_decodes_are_shown_and_others_go_on(model: ModelDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    async with held(model) as (served, session, hold):
        for stuck in range(2):
            with monkeypatch.context() as patched:
                exchange = await decoding("raw")(served, session, hold, patched)
                hold.reached.clear()
                deadline_passes(served, exchange)
                await exchange.end()
            assert served.sample("dat_abandoned_decodes") == stuck + 1
            assert served.engine.slots_in_use == stuck + 1
        answered = whole(served, "raw")
        await answered.end()
        assert answered.status == 200
        hold.let_go.set()
        await until(lambda: not served.engine.slots_in_use and not served.sample("dat_abandoned_decodes"))


@pytest.mark.parametrize("ask", [Ask("/v2/repository/index", {}, b"{}"), RAW], ids=["other route", "inference"])
async def test_request_that_comes_after_the_drain_time_is_503(model: ModelDirectory, ask: Ask) -> None:
    async with held(model) as (served, _, __):
        served.app.state.service.in_flight.give_up()
        exchange = Exchange(served.app, ask)
        await exchange.end()
        exchange.assert_told(503, "not_ready")


async def test_upload_to_a_route_without_a_model_ends_with_the_drain_time(model: ModelDirectory) -> None:
    async with held(model) as (served, _, __):
        exchange = Exchange(served.app, Ask("/v2/repository/index", {}, b"{}"))
        async with asyncio.timeout(PATIENCE_S):
            await exchange.is_read.wait()
        served.app.state.service.in_flight.give_up()
        await exchange.end()
        exchange.assert_told(503, "not_ready")


@pytest.mark.parametrize("form", ["raw", "v2"])
async def test_server_that_cancels_a_request_at_the_services_end_sends_503(model: ModelDirectory, form: str) -> None:
    async with held(model) as (served, _, __):
        exchange = await upload(form)(served, GatedSession(), Hold(), pytest.MonkeyPatch())
        exchange.task.cancel()
        served.app.state.service.in_flight.give_up()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task
        exchange.assert_told(503, "not_ready")


async def test_server_that_cancels_a_request_says_that_its_client_is_gone(model: ModelDirectory) -> None:
    async with held(model) as (served, session, hold):
        exchange = await upload("raw")(served, session, hold, pytest.MonkeyPatch())
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task
        assert exchange.status is None
        labels = {"route": RAW.path, "status": "0", "code": "cancelled"}
        assert served.sample("dat_requests_total", **labels) == 1


async def test_answer_that_has_begun_is_ended_by_nothing(model: ModelDirectory) -> None:
    async with held(model) as (served, _, __):
        exchange = Exchange(served.app, Ask(RAW.path, {"content-type": "text/plain"}, b"x" * 10))
        async with asyncio.timeout(PATIENCE_S):
            await exchange.answered.wait()  # and the rest of the body is waited for
        served.app.state.service.in_flight.give_up()
        exchange.work.end(NotReady("too late"))
        await exchange.end()
        assert exchange.status == 415
