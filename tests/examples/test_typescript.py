"""The TypeScript example, built as its settings say, against the demo model and against a service that is busy."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.conftest import ExportOnce
from tests.examples.test_examples import digits as digits
from tests.generated import EXAMPLE, checkout, run
from tests.integration.conftest import PATIENCE_S, ROOT, service_process


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, whose client is generated, and which is type-checked and built."""
    directory = checkout(tmp_path_factory.mktemp("checkout")) / EXAMPLE
    for script in ("generate", "build"):
        ended = run("npm", "run", script, directory=directory)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return directory / "dist" / "main.js"


def ask(program: Path, url: str, *images: Path, key: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {} if key is None else {"DAT_CLIENT_API_KEY": key}
    return run("node", program, "--url", url, *images, directory=program.parent, environment=environment)


@pytest.fixture(scope="module")
def url(exported: ExportOnce) -> Iterator[str]:
    with service_process(exported("dat_demo"), "--threads", "1") as process:
        yield f"http://127.0.0.1:{process.port}"


def test_images_are_classified_and_compared_by_their_embeddings(program: Path, url: str, digits: Path) -> None:
    ended = ask(program, url, digits / "8" / "0.png", digits / "3" / "1.png", digits / "8" / "2.png")
    assert ended.returncode == 0, ended.stderr
    found = [
        re.fullmatch(r"\d\.png: (\d) [01]\.\d{4}, similarity (-?[01]\.\d{4})", s) for s in ended.stdout.splitlines()
    ]
    (first, other, alike) = [match for match in found if match]
    assert [match[1] for match in (first, other, alike)] == ["8", "3", "8"]
    assert first[2] == "1.0000"
    assert float(other[2]) < float(alike[2]) < 1


def test_images_are_sent_in_requests_that_the_service_takes(program: Path, exported: ExportOnce, digits: Path) -> None:
    images = [digits / str(digit) / "0.png" for digit in (8, 3, 8, 1, 5)]
    with service_process(exported("dat_demo"), "--threads", "1", "--max-images", "2") as process:
        address = f"http://127.0.0.1:{process.port}"
        ended = ask(program, address, *images)
        metrics = httpx.get(f"{address}/metrics", timeout=PATIENCE_S).text
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split()[1] for line in lines] == list("83815")
    assert [line.endswith("similarity 1.0000") for line in lines] == [True, False, True, False, False]
    for route in ("classify", "features"):
        counts = re.findall(rf'^dat_requests_total\{{[^}}]*route="/v1/{route}"[^}}]*\}} (\S+)$', metrics, re.MULTILINE)
        assert sum(map(float, counts)) == 3


def test_a_refusal_is_told_by_its_code(program: Path, url: str, digits: Path) -> None:
    ended = ask(program, url, digits / "8" / "0.png", ROOT / "LICENSE")
    assert ended.returncode == 1
    assert re.match(r"bad_image: .*\(request \w+\)", ended.stderr)


def test_a_server_that_is_not_there_is_told(program: Path, digits: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as taken:
        port = taken.server_address[1]
    ended = ask(program, f"http://127.0.0.1:{port}", digits / "8" / "0.png")
    assert ended.returncode == 1
    assert "fetch failed" in ended.stderr


class Busy(BaseHTTPRequestHandler):
    """Refuses the first `refusals` requests with a status, and answers 401 afterwards, which ends the program."""

    status: int
    refusals: int
    retry_after: str | None
    seen: list[tuple[str, str | None]]
    """The bodies and keys of all requests for inference."""

    def do_GET(self) -> None:
        limits = {"max_images": 64, "max_body_bytes": 1 << 25}
        answer = json.dumps({"default": "a", "limits": limits, "models": []})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.seen.append((body.decode(), self.headers["Authorization"]))
        is_refused = len(self.seen) <= self.refusals
        answer = json.dumps({"code": "busy" if is_refused else "unauthorized", "detail": "No.", "request_id": "1"})
        self.send_response(self.status if is_refused else 401)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(answer)))
        if is_refused and self.retry_after is not None:
            self.send_header("Retry-After", self.retry_after)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "retry_after", "refusals", "code", "requests"),
    [
        pytest.param(429, "0", 2, "unauthorized", 3, id="comes back as often as it is sent away"),
        pytest.param(503, "0", 1, "unauthorized", 2, id="comes back when the service is ready"),
        pytest.param(429, "0", 9, "busy", 5, id="gives up in the end"),
        pytest.param(503, None, 9, "busy", 1, id="does not come back where nothing says when"),
        pytest.param(500, "0", 9, "busy", 1, id="does not come back to a fault"),
    ],
)
def test_the_program_comes_back_as_retry_after_says(
    program: Path, digits: Path, *, status: int, retry_after: str | None, refusals: int, code: str, requests: int
) -> None:
    facts = {"status": status, "retry_after": retry_after, "refusals": refusals, "seen": []}
    kind = type("Fresh", (Busy,), facts)
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        ended = ask(program, f"http://127.0.0.1:{server.server_address[1]}", digits / "8" / "0.png", key="the-key")
        server.shutdown()
        thread.join()
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"{code}: No. (request 1)")
    assert len(kind.seen) == requests
    ((body, key),) = set(kind.seen)  # the same request again, body and all
    assert key == "Bearer the-key"
    assert len(json.loads(body)["images"]) == 1
