"""nginx as docs/deploy/proxy.md has it: with TLS and a path, in front of a service."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import blocks_run_by

PROGRAM = shutil.which("nginx", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin")))
NOT_INSTALLED = "nginx, of Debian's package nginx, is not installed"
PREFIX = "/vision"
PATIENCE_S = 60
_MAIN = """daemon off;
master_process off;
pid nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {server}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A running nginx: the address of what it serves, and the certificate that signs its own."""

    url: str
    certificate: Path


@contextlib.contextmanager
def proxied(port: int, folder: Path, *, prefix_is_left: bool = False) -> Iterator[Proxy]:
    """Run nginx in `folder`, in front of the service on `port`."""
    assert PROGRAM is not None, NOT_INSTALLED
    certificate, key = _certificate(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own_port = free.getsockname()[1]
    (block,) = blocks_run_by(__file__)
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "listen 443": f"listen 127.0.0.1:{own_port}",
        "/etc/ssl/images.example.org.pem": str(certificate),
        "/etc/ssl/private/images.example.org.key": str(key),
    }
    if prefix_is_left:
        changes["http://dat_serve/;"] = "http://dat_serve;"
    server = block.text
    for there, here in changes.items():
        assert server.count(there) == 1
        server = server.replace(there, here)
    (folder / "nginx.conf").write_text(_MAIN.format(server=server))
    running = subprocess.Popen(
        [PROGRAM, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"], stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    try:
        # It listens before it says anything of the system that it runs on.
        said = ""
        while "getrlimit" not in said:
            line = running.stderr.readline()
            assert line, said
            said += line
        yield Proxy(f"https://127.0.0.1:{own_port}{PREFIX}", certificate)
    finally:
        running.terminate()
        running.communicate(timeout=PATIENCE_S)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that signs itself, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=proxy", "-days", "2")
    named = ("-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", "-x509", *made, *named, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    return certificate, key
