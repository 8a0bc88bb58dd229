"""The command against a server of a few lines, which answers as the service does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import main
from service.settings import CLIENT_API_KEY

FAILED = "Its labels.tsv does not match its manifest."


def entry(name: str, version: int, state: str, **more: object) -> dict[str, Any]:
    shown = {"name": name, "version": version, "variant": None, "state": state, "reason": "", "is_default": False}
    return {**shown, "devices": [], "graphs": [], "parity": None, **more}


@dataclass
class Fake:
    """Says what it has, and refuses what is in `refusals`, by path."""

    models: list[dict[str, Any]]
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.delenv(CLIENT_API_KEY, raising=False)
    fake = Fake(
        [
            entry("dat", 2, "ready", is_default=True, devices=["cuda:0", "cuda:1"], graphs=["fused", "standard"],
                  parity={"error": 0.00012, "tolerance": 0.01}),
            entry("dat", 3, "failed", reason=FAILED),
            entry("other", 1, "unloaded"),
        ]
    )  # fmt: skip

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"default": "dat", "models": fake.models})

        def do_POST(self) -> None:
            self._answer(None)

        def _answer(self, document: object) -> None:
            fake.requests.append((self.command, self.path, self.headers["Authorization"]))
            status, body = fake.refusals.get(self.path, (200, document))
            content = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    fake.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield fake
    http.shutdown()
    thread.join()
    http.server_close()


def test_every_version_is_listed_with_its_state(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--url", server.url]) == 0
    header, first, second, third = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "version", "state", "answers", "devices", "parity", "error", "reason"]
    assert first.split("  ")[0] == "dat"
    for cell in ("2", "ready", "by default", "cuda:0 (fused),cuda:1", "1.2e-04 of 1e-02"):
        assert cell in first
    assert second.endswith(FAILED)
    assert third.split() == ["other", "1", "unloaded"]


def test_models_that_are_named_are_listed_as_json(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "other", "--json", "--url", server.url]) == 0
    assert json.loads(capsys.readouterr().out) == [server.models[2]]
    assert main(["models", "list", "third", "--url", server.url]) == 1
    assert "third: the server has no such model; it has dat, other" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["load", "unload"])
def test_models_are_loaded_and_unloaded_and_shown(
    server: Fake, action: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret\n")
    arguments = ["models", action, "dat", "other", "dat", "--url", server.url, "--api-key-file", str(tmp_path / "key")]
    assert main(arguments) == 0
    assert server.requests == [
        ("POST", f"/v2/repository/models/dat/{action}", "Bearer secret"),
        ("POST", f"/v2/repository/models/other/{action}", "Bearer secret"),
        ("GET", "/v1/models", "Bearer secret"),
    ]
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("document", [{"code": "load_failed", "detail": FAILED}, {"error": FAILED}])
def test_what_the_server_says_against_it_is_said_and_others_are_loaded(
    server: Fake, document: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    server.refusals["/v2/repository/models/dat/load"] = 422, document
    assert main(["models", "load", "dat", "other", "--url", server.url]) == 1
    out, errors = capsys.readouterr()
    assert f"dat-serve: dat: not loaded: {FAILED}" in errors
    assert ("POST", "/v2/repository/models/other/load", None) in server.requests
    assert len(out.splitlines()) == 4


def test_a_server_that_does_not_list_is_an_error(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    server.refusals["/v1/models"] = 401, {"detail": "This needs an API key."}
    assert main(["models", "list", "--url", server.url]) == 1
    assert "/v1/models answered 401: This needs an API key." in capsys.readouterr().err
    server.refusals["/v1/models"] = 200, {"hello": "world"}
    assert main(["models", "list", "--url", server.url]) == 1
    assert "is this the service?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:1", "cannot be reached"), ("127.0.0.1:80", "cannot be reached"), ("http://a:b", "address")],
)
def test_an_address_without_a_server_is_an_error(url: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--url", url]) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["load"], "load: name the models"), (["unload", "dat:2"], "dat:2: models are named without versions")],
)
def test_models_to_load_are_named_without_versions(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *arguments, "--url", "http://service"]) == 2
    assert reason in capsys.readouterr().err


def test_names_stay_in_their_place_of_the_path(server: Fake) -> None:
    server.refusals["/v2/repository/models/..%2Fx/load"] = 404, {"error": "There is none."}
    assert main(["models", "load", "../x", "--url", server.url]) == 1
    assert server.requests[0][1] == "/v2/repository/models/..%2Fx/load"
