"""Nothing that a request holds reaches the log, the metrics or the traces, whatever goes wrong with it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin

from tests.api_keys import entry_of
from tests.integration.collector import Collector, collecting
from tests.integration.conftest import PATIENCE_S, ROOT
from tests.service.http.routes.v2.bodies import PATH, binary, document
from tests.service.pictures import photo

SECRET = "Hush7dQz1"
"""Nine bytes, so that base64 of what begins with it begins with base64 of it."""
ENCODED = base64.b64encode(SECRET.encode()).decode()
KEY = f"{SECRET}-key"
KNOWN_ID = "callers-own-id"
BREAKS = "4"
"""The value of `top_k` on which the service below fails, with all that it knows in the exception's message."""
CUSTOMIZATION = f"""
from service.http.routes import classify

answer = classify.json_answer

async def failing(request, service, inferred, *rest, **named):
    if request.query_params.get("top_k") == "{BREAKS}":
        try:
            int(str(request.headers))
        except ValueError as error:
            raise RuntimeError(str(request.url), dict(request.headers), inferred.images) from error
    return await answer(request, service, inferred, *rest, **named)

classify.json_answer = failing
"""
CLASSIFY = "/v1/classify"
FORM = "multipart/form-data"
PNG = {"Content-Type": "image/png"}


@dataclass
class Service:
    """A process with all that it writes."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    port: int = 0
    is_ready: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line)
            if found := re.search(r"listening.*http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
            if re.search(r'service[\w.]*: ready|"message": ?"ready"', line):
                self.is_ready.set()


@contextlib.contextmanager
def serving(repository: Path, folder: Path, collector: Collector, *options: str) -> Iterator[Service]:
    """Run a service that fails where it is told to, and end it in order."""
    (folder / "sitecustomize.py").write_text(CUSTOMIZATION)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAT_", "OTEL_"))}
    environment |= {
        "DAT_API_KEYS": entry_of(KEY),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
    }
    limits = ("--max-body-bytes", "100000", "--receive-timeout-ms", "500", "--batch-buckets", "1,4")
    popen = subprocess.Popen(
        [sys.executable, "-m", "service", "--repository", str(repository), "--port", "0", "--threads", "1",
         "--log-level", "debug", "--tracing", *limits, *options],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    service = Service(popen)
    reader = threading.Thread(target=service.read)
    reader.start()
    try:
        assert service.is_ready.wait(PATIENCE_S), "".join(service.lines)
        yield service
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(PATIENCE_S) == 0
    finally:
        popen.kill()
        popen.wait(PATIENCE_S)
        reader.join(PATIENCE_S)
        assert popen.stdout is not None
        popen.stdout.close()


def image_with_text(form: str) -> bytes:
    if form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", SECRET)
        text.add_itxt(SECRET, SECRET)
        return photo("PNG", pnginfo=text)
    exif = Image.Exif()
    exif[0x010E] = SECRET  # the image's description
    return photo(form, exif=exif)


def multipart(*, name: str = "image", filename: str = f"{SECRET}.png", body: bytes | None = None) -> dict[str, Any]:
    return {"files": [(name, (filename, photo() if body is None else body, "image/png"))]}


def asked() -> list[tuple[str, str, dict[str, Any], int]]:
    """Requests with secrets in all their parts, and the status that each has to have."""
    v2_json = {"headers": {"Content-Type": "application/json"}}
    pixels = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [ENCODED]}
    text = image_with_text("PNG")
    requests: list[tuple[str, str, dict[str, Any], int]] = [
        ("POST", f"{CLASSIFY}?top_k=2", multipart(), 200),
        ("POST", f"{CLASSIFY}?top_k=2", multipart(name=SECRET), 400),
        ("POST", CLASSIFY, multipart(body=SECRET.encode()), 422),
        ("POST", f"{CLASSIFY}?on_error=skip", multipart(body=text[: len(text) // 2]), 200),
        ("POST", f"{CLASSIFY}?{SECRET}={SECRET}", {"content": photo(), "headers": PNG}, 422),
        ("POST", f"{CLASSIFY}?top_k={SECRET}", {"content": photo(), "headers": PNG}, 422),
        ("POST", f"{CLASSIFY}?model={SECRET}", {"content": photo(), "headers": PNG}, 404),
        ("POST", f"/v1/features?outputs={SECRET}", {"content": photo(), "headers": PNG}, 422),
        ("POST", f"/v1/explain?query={SECRET}", {"content": photo(), "headers": PNG}, 422),
        ("POST", f"{CLASSIFY}?top_k={BREAKS}&model=tiny", multipart(), 500),
        ("POST", CLASSIFY, {"content": SECRET.encode() * 9, "headers": PNG}, 422),
        *(
            ("POST", CLASSIFY, {"content": image_with_text(form), "headers": PNG}, 200)
            for form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
        ),
        ("POST", CLASSIFY, {"content": image_with_text("TIFF")[:-40], "headers": PNG}, 422),
        ("POST", CLASSIFY, {"content": text[:-90], "headers": PNG}, 422),
        ("POST", CLASSIFY, {"json": {SECRET: SECRET}}, 400),
        ("POST", CLASSIFY, {"json": {"images": [ENCODED, SECRET]}}, 400),
        ("POST", CLASSIFY, {"content": photo(), "headers": {"Content-Type": f"{SECRET}/{SECRET}"}}, 415),
        ("POST", CLASSIFY, {"content": photo(), "headers": PNG | {"Content-Encoding": SECRET}}, 415),
        ("POST", CLASSIFY, {"content": photo(), "headers": PNG | {"Accept": f"{SECRET}/x"}}, 406),
        ("POST", CLASSIFY, {"content": SECRET.encode() * 20_000, "headers": PNG}, 413),
        ("POST", CLASSIFY, {"content": photo(), "headers": PNG | {"Authorization": f"Bearer {SECRET}"}}, 401),
        ("POST", CLASSIFY, {"content": photo(), "headers": PNG | {"Authorization": f"{SECRET} {SECRET}"}}, 401),
        ("POST", CLASSIFY, {"content": SECRET, "headers": {"Content-Type": f"{FORM}; boundary={SECRET}"}}, 400),
        ("POST", PATH, {"json": document(pixels, id=SECRET, parameters={SECRET: SECRET})}, 422),
        ("POST", PATH, binary(document(id=SECRET, parameters={SECRET: SECRET})), 200),
        ("POST", PATH, binary(document(outputs=[{"name": SECRET}])), 400),
        ("POST", PATH, binary(document(), length=SECRET), 400),
        ("POST", PATH, {"content": f"{{{SECRET}".encode(), **v2_json}, 400),
        ("POST", f"/v2/models/{SECRET}/infer", binary(document()), 404),
        ("POST", f"/v2/models/tiny/versions/{SECRET}/infer", binary(document()), 404),
        ("GET", f"/v2/models/{SECRET}", {}, 404),
        ("GET", f"/v1/models/{SECRET}", {}, 404),
        ("GET", f"/problems/{SECRET}", {}, 404),
        ("GET", f"/{SECRET}/{SECRET}?{SECRET}", {}, 404),
        ("GET", f"/docs/assets/{SECRET}", {}, 404),
        ("PUT", f"{CLASSIFY}?{SECRET}", {"content": SECRET}, 405),
        ("GET", "/health/live", {"headers": {"X-Request-ID": f"{SECRET} with a space"}}, 200),
        ("GET", "/health/live", {"headers": {"X-Request-ID": KNOWN_ID}}, 200),
        ("GET", "/health/live", {"headers": {"traceparent": f"00-{SECRET}", "baggage": f"a={SECRET}"}}, 200),
        ("GET", "/health/live", {"headers": {"Connection": "upgrade", "Upgrade": SECRET}}, 200),
    ]  # fmt: skip
    return requests


COMMON = {
    "Authorization": f"Bearer {KEY}",
    "User-Agent": SECRET,
    "Cookie": f"session={SECRET}",
    "Referer": f"http://{SECRET}/",
    "Forwarded": f"for={SECRET}",
    "X-Forwarded-For": SECRET,
    "Host": SECRET.lower(),
    SECRET: SECRET,
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": f"vendor={SECRET}",
}

HEAD = f"POST {CLASSIFY}?{SECRET} HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
RAW = {
    "no HTTP": f"{SECRET}\r\n\r\n",
    "no method": f"{SECRET} / HTTP/1.1\r\n\r\n",
    "no version": f"GET /{SECRET} {SECRET}\r\n\r\n",
    "TLS": f"\x16\x03\x01{SECRET}",
    "no header": f"GET / HTTP/1.1\r\n{SECRET}\x00 {SECRET}\r\n\r\n",
    "no length": f"{HEAD}Content-Length: {SECRET}\r\n\r\n",
    "no chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
    "long head": f"GET /{SECRET * 9000} HTTP/1.1\r\n\r\n",
    "half a head": f"GET /{SECRET} HTTP/1.1\r\nX-Half: {SECRET}",
    "half a body": f"{HEAD}Authorization: Bearer {KEY}\r\nContent-Length: 900\r\n\r\n{SECRET}",
}


def send_raw(port: int, data: str) -> bytes:
    """Send bytes as they are, and return what comes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(data.encode("latin-1"))
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while received := connection.recv(65536):
                answer += received
    return answer


def send_all(port: int) -> str:
    """Send everything, and return the metrics after it."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=COMMON, timeout=PATIENCE_S) as client:
        for method, path, arguments, status in asked():
            response = client.request(method, path, **arguments)
            assert response.status_code == status, (method, path, response.text)
            assert response.headers["x-request-id"]
            assert status < 400 or "server-timing" in response.headers
        client.post(f"{CLASSIFY}?timeout_ms=1", content=photo(width=900, height=900)[:90_000], headers=PNG)
        for name, data in RAW.items():
            answer = send_raw(port, data)
            assert re.match(rb"HTTP/1\.1 4\d\d ", answer), (name, answer)
            assert b"x-request-id" in answer.lower(), (name, answer)
        with socket.create_connection(("127.0.0.1", port)) as connection:  # and goes in the midst of it
            connection.sendall(RAW["half a body"].encode())
        return client.get("/metrics").text


@pytest.mark.parametrize(("form", "workers"), [("text", 1), ("json", 2)])
def test_secrets_are_nowhere(repository: Path, tmp_path: Path, form: str, workers: int) -> None:
    options = ("--log-format", form, "--workers", str(workers))
    with collecting() as collector:
        with serving(repository, tmp_path, collector, *options) as service:
            metrics = send_all(service.port)
        log = "".join(service.lines)
        traces = "".join(map(str, collector.exports))
    for place in (log, metrics, traces):
        for hidden in (SECRET, ENCODED):
            found = re.search(rf".*{hidden}.*", place, re.IGNORECASE)
            assert found is None, found and found[0]
    # What is to be there shows that the right things were looked at.
    assert KNOWN_ID in log
    assert "unmatched" in log
    assert "/v2/models/{model}/infer" in log
    assert "builtins.RuntimeError" in log
    assert "in failing" in log
    assert collector.services == {"dat-serve"}
    assert len([span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]) > len(asked())
    if form == "json":
        lines = [json.loads(line) for line in service.lines]
        served = [line for line in lines if line["logger"] in ("service.access", "service.http.middleware")]
        assert all("request_id" in line for line in served)


def test_traces_arrive_at_a_collector(repository: Path, tmp_path: Path) -> None:
    with collecting() as collector:
        with serving(repository, tmp_path, collector) as service:
            url = f"http://127.0.0.1:{service.port}{CLASSIFY}"
            headers = PNG | {"Authorization": f"Bearer {KEY}", "traceparent": COMMON["traceparent"]}
            assert httpx.post(url, content=photo(), headers=headers).status_code == 200
        spans = {span.name: span for span in collector.spans}
    request = spans[f"POST {CLASSIFY}"]
    trace, parent = COMMON["traceparent"].split("-")[1:3]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (trace, parent)
    for stage in ("decode", "preprocess", "queue", "inference", "postprocess"):
        assert spans[stage].parent_span_id == request.span_id
        assert request.start_time_unix_nano <= spans[stage].start_time_unix_nano
        assert spans[stage].start_time_unix_nano <= spans[stage].end_time_unix_nano <= request.end_time_unix_nano
    assert [link.span_id for link in spans["batch"].links] == [request.span_id]
    assert [link.span_id for link in spans["inference"].links] == [spans["batch"].span_id]
