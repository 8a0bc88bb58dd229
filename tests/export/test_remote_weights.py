"""Weights from an address: copied, kept, and taken by their digest alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.__main__ import main
from export.errors import ExportError
from export.progress import Progress
from export.remote_weights import checked_weights
from service.errors import RepositoryError
from service.remote import store as store_module
from service.remote.address import RemoteAddress
from tests.web_server import WebServer, web_server

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(store_module, "_RETRIES", 0)
    with web_server() as running:
        running.files["pub/dat.pth"] = CONTENT
        yield running


def fetched(server: WebServer, cache: Path, sha256: str | None, path: str = "pub/dat.pth") -> Path:
    return checked_weights(RemoteAddress(f"{server.url}/{path}"), sha256, cache, Progress(io.StringIO()))


def test_weights_are_copied_once_and_keep_their_name(server: WebServer, tmp_path: Path) -> None:
    path = fetched(server, tmp_path, DIGEST)
    assert (path.name, path.read_bytes()) == ("dat.pth", CONTENT)
    server.status = 500
    assert fetched(server, tmp_path, DIGEST) == path


def test_without_a_digest_it_is_said_and_the_file_is_there_when_it_is_given(server: WebServer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"/pub/dat.pth has sha256 {DIGEST}; .* give --sha256 {DIGEST}"):
        fetched(server, tmp_path, None)
    server.requests.clear()
    fetched(server, tmp_path, DIGEST)
    assert server.requests == []


def test_another_digest_is_refused(server: WebServer, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=rf"/pub/dat.pth has sha256 {DIGEST}, expected {'0' * 64}"):
        fetched(server, tmp_path, "0" * 64)
    assert list(tmp_path.rglob("dat.pth")) == []


def test_a_broken_copy_goes_on(server: WebServer, tmp_path: Path) -> None:
    path = fetched(server, tmp_path, DIGEST)
    path.write_bytes(CONTENT[:6000])
    server.requests.clear()
    assert fetched(server, tmp_path, DIGEST).read_bytes() == CONTENT
    assert server.gets("pub/dat.pth") == ["bytes=6000-6999"]


def test_what_is_not_there_is_named(server: WebServer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"/pub/none.pth does not exist"):
        fetched(server, tmp_path, DIGEST, "pub/none.pth")
    with pytest.raises(ExportError, match=r"is no address of a file"):
        fetched(server, tmp_path, DIGEST, "")


def test_names_with_coded_characters_are_those_of_the_server(server: WebServer, tmp_path: Path) -> None:
    server.files["pub/a b.pth"] = CONTENT
    assert fetched(server, tmp_path, DIGEST, "pub/a%20b.pth").name == "a b.pth"


def test_a_digest_is_held_against_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "dat.pth"
    file.write_bytes(CONTENT)
    assert checked_weights(file, DIGEST, None, Progress(io.StringIO())) == file
    with pytest.raises(ExportError, match=rf"dat.pth has sha256 {DIGEST}, expected {'0' * 64}"):
        checked_weights(file, "0" * 64, None, Progress(io.StringIO()))


def test_the_command_takes_an_address(server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("models/demo/dat_demo.safetensors").read_bytes()
    server.files["pub/dat_demo.safetensors"] = weights
    options = ["--weights", f"{server.url}/pub/dat_demo.safetensors", "--download-cache", str(tmp_path / "cache")]
    options += ["--repository", str(tmp_path / "models"), "--no-explain", "--opset", "16"]
    assert main(["dat_demo", *options]) == 1
    digest = hashlib.sha256(weights).hexdigest()
    assert f"error: {server.url}/pub/dat_demo.safetensors has sha256 {digest}" in capsys.readouterr().err
    assert main(["dat_demo", *options, "--sha256", digest]) == 1
    assert "opset 16" in capsys.readouterr().err  # all that is left to refuse


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--weights", "ftp://host/a"), "--weights: addresses begin with"),
        (("--weights", "https://host/a?token=x"), "--weights: an address holds neither"),
        (("--weights", "a.pth", "--sha256", "abc"), "--sha256: a sha256 of 64 digits"),
    ],
)
def test_what_is_no_address_or_digest_is_a_wrong_command_line(
    arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dat_tiny", *arguments])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_a_digest_without_weights_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dat_tiny", "--random-weights", "0", "--sha256", DIGEST]) == 1
    assert "--sha256 is of --weights" in capsys.readouterr().err
