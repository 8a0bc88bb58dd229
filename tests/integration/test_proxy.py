"""The service behind nginx with TLS and a path prefix, which nginx takes off or leaves on."""

from __future__ import annotations

import io
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from PIL import Image

from tests.integration.collector import collecting
from tests.integration.conftest import PATIENCE_S, ROOT, Process, service_process
from tests.nginx import NOT_INSTALLED, PREFIX, PROGRAM, Proxy, proxied
from tests.service.pictures import photo

JPEG = {"Content-Type": "image/jpeg"}

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NOT_INSTALLED)


@dataclass(frozen=True)
class Behind:
    process: Process
    proxy: Proxy
    http: httpx.Client


@pytest.fixture(scope="module", params=[False, True], ids=["prefix is taken off", "prefix is left on"])
def behind(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Behind]:
    """A service, nginx in front of it, and a client."""
    with (
        service_process(repository, "--root-path", PREFIX) as process,
        proxied(process.port, tmp_path_factory.mktemp("nginx"), prefix_is_left=request.param) as proxy,
        client_of(proxy) as http,
    ):
        yield Behind(process, proxy, http)


def client_of(proxy: Proxy) -> httpx.Client:
    trusting = ssl.create_default_context(cafile=str(proxy.certificate))
    return httpx.Client(base_url=proxy.url, verify=trusting, timeout=PATIENCE_S)


def test_image_is_classified(behind: Behind) -> None:
    for _ in range(3):  # on connections that nginx keeps
        answer = behind.http.post("/v1/classify", content=photo("JPEG"), headers=JPEG)
        assert answer.status_code == 200, answer.text
    direct = httpx.post(f"http://127.0.0.1:{behind.process.port}/v1/classify", content=photo("JPEG"), headers=JPEG)
    assert answer.json()["results"] == direct.json()["results"]


def test_large_body_passes_and_one_over_the_limit_is_refused(behind: Behind) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2600, 2600)).save(file, "BMP")
    assert len(file.getvalue()) > 20_000_000
    answer = behind.http.post("/v1/classify", content=file.getvalue(), headers={"Content-Type": "image/bmp"})
    assert answer.status_code == 200
    answer = behind.http.post("/v1/classify", content=bytes(33 * 2**20), headers=JPEG)
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/v1/classify/", "/v1/models/", "/docs/", "/v2/", "/health/live/"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_slash_too_many_is_404_and_no_redirect(behind: Behind, method: str, path: str) -> None:
    answer = behind.http.request(method, path)
    assert (answer.status_code, answer.headers.get("location")) == (404, None)
    assert answer.headers["content-type"] == ("application/json" if path == "/v2/" else "application/problem+json")


@pytest.mark.parametrize(
    "path", ["/", "/page/main.js", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json", "/v1/models", "/v2"]
)
def test_head_is_answered_as_get_is(behind: Behind, path: str) -> None:
    get, head = behind.http.get(path), behind.http.head(path)
    assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-length"] == str(len(get.content))
    assert head.headers["content-type"] == get.headers["content-type"]


def test_type_of_a_problem_leads_to_its_explanation(behind: Behind) -> None:
    answer = behind.http.get("/v1/classify")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    explanation = behind.http.get(urljoin(str(answer.url), answer.json()["type"]))
    assert explanation.text.startswith("Method not allowed (405)")


def test_document_says_where_the_service_is(behind: Behind) -> None:
    answer = behind.http.get("/openapi.json")
    (server,) = answer.json()["servers"]
    address = urljoin(str(answer.url), server["url"])
    assert behind.http.get(f"{address}/v1/models").status_code == 200


def test_command_asks_below_the_path(behind: Behind, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo("JPEG"))
    ended = subprocess.run(
        [sys.executable, "-m", "service", "classify", str(tmp_path), "--url", behind.proxy.url],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={"SSL_CERT_FILE": str(behind.proxy.certificate)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["predictions"]


@pytest.mark.parametrize(("trusted", "scheme"), [((), "https"), (("--forwarded-allow-ips", "10.0.0.0/8"), "http")])
def test_scheme_of_the_request_is_the_proxys_where_that_is_trusted(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: tuple[str, ...], scheme: str
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        with service_process(repository, "--root-path", PREFIX, "--tracing", *trusted) as process:
            with proxied(process.port, tmp_path) as proxy, client_of(proxy) as http:
                assert http.get("/v1/models").status_code == 200
            process.popen.terminate()
            assert process.end() == 0
    (span,) = [span for span in collector.spans if span.name == "GET /v1/models"]
    assert {each.key: each.value.string_value for each in span.attributes}["url.scheme"] == scheme
