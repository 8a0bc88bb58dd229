"""https on real sockets, with certificates that the test makes."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.__main__ import main
from tests.integration.conftest import PATIENCE_S, service_process
from tests.service.pictures import photo

PASSWORD = "the password"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S)


@dataclass(frozen=True)
class Files:
    """A certificate authority, a server's certificate for 127.0.0.1, a client's, and keys."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        return str(self.folder / f"{name}.pem")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(folder, "req", "-x509", *made, "-keyout", "ca_key.pem", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca")
    for name in ("server", "client"):
        openssl(folder, "req", *made, "-keyout", f"{name}_key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca_key.pem", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", f"{name}.pem",
        )  # fmt: skip
    openssl(folder, "ec", "-in", "server_key.pem", "-aes256", "-passout", f"pass:{PASSWORD}", "-out", "locked_key.pem")
    return Files(folder)


def ask(port: int, files: Files, *, certificate: bool = False) -> http.client.HTTPResponse:
    context = ssl.create_default_context(cafile=files.ca)
    if certificate:
        context.load_cert_chain(files.client, files.client_key)
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE_S)
    connection.request("POST", "/v1/classify", photo("JPEG"), {"Content-Type": "image/jpeg"})
    response = connection.getresponse()
    json.loads(response.read())
    connection.close()
    return response


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_speaks_https_alone_and_silent_connections_hold_nobody(
    repository: Path, files: Files, workers: str
) -> None:
    options = ("--tls-certificate", files.server, "--tls-key", files.server_key, "--workers", workers)
    with service_process(repository, *options) as process:
        assert any(line.get("url", "").startswith("https://127.0.0.1:") for line in process.lines)
        silent = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(8)]
        response = ask(process.port, files)
        assert response.status == 200
        assert response.headers["Strict-Transport-Security"]
        with socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE_S) as plain:
            plain.sendall(b"GET /health/live HTTP/1.1\r\nHost: service\r\n\r\n")
            try:
                received = plain.recv(1024)
            except ConnectionResetError:
                received = b""
            assert not received.startswith(b"HTTP/")
        assert ask(process.port, files).status == 200
        process.popen.terminate()
        assert process.end() == 0  # though the silent ones are still there
        for connection in silent:
            connection.close()
    assert not [line for line in process.lines if "Traceback" in line["message"] or line.get("level") == "error"]


def test_client_without_a_certificate_is_turned_away_where_one_is_wanted(repository: Path, files: Files) -> None:
    options = ("--tls-certificate", files.server, "--tls-key", files.server_key, "--tls-ca-certificates", files.ca)
    with service_process(repository, *options) as process:
        assert ask(process.port, files, certificate=True).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(process.port, files)


def test_health_command_asks_over_tls_with_the_servers_own_certificate(
    repository: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = ("--tls-certificate", files.server, "--tls-key", files.locked_key, "--tls-key-password", PASSWORD)
    tls = (*tls, "--tls-ca-certificates", files.ca)
    with service_process(repository, *tls) as process:
        port = ("--port", str(process.port))
        assert main(["health", *port, *tls]) == 0
        assert capsys.readouterr().out == f"https://127.0.0.1:{process.port} is ready.\n"
        assert main(["health", *port]) == 1
    assert main(["health", *port, *tls]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_encrypted_key_is_opened_by_its_password(
    repository: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--tls-certificate", files.server, "--tls-key", files.locked_key, "--tls-key-password", PASSWORD)
    with service_process(repository, *options) as process:
        assert ask(process.port, files).status == 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tls-certificate", "{folder}/none.pem"), "--tls-certificate: {folder}/none.pem cannot be read"),
        (("--tls-certificate", "{server}", "--tls-key", "{folder}/none.pem"), "--tls-key: {folder}/none.pem cannot"),
        (("--tls-certificate", "{server}"), "{server} are not a certificate and its key"),
        (("--tls-certificate", "{server}", "--tls-key", "{client_key}"), "{server} and {client_key} are not"),
        (("--tls-certificate", "{server}", "--tls-key", "{locked_key}"), "--tls-key-password"),
        (
            ("--tls-certificate", "{server}", "--tls-key", "{server_key}", "--tls-ca-certificates", "{server_key}"),
            "--tls-ca-certificates: {server_key} holds no certificates",
        ),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_file_that_cannot_be_used_is_named_at_the_start(
    repository: Path,
    files: Files,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    says: str,
    workers: str,
) -> None:
    names = {name: getattr(files, name) for name in ("server", "server_key", "client_key", "locked_key")}
    names["folder"] = str(files.folder)
    given = [option.format(**names) for option in options]
    assert main(["--repository", str(repository), "--port", "0", "--workers", workers, *given]) == 2
    assert says.format(**names) in capsys.readouterr().err
