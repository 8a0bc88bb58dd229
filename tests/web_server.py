"""A web server for files in memory that can break off, lie, send whole files only, or be gone; http or https."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote


@dataclass
class WebServer:
    """What the server has, does, and was asked; files by their paths without the first slash."""

    files: dict[str, bytes] = field(default_factory=dict)
    sends_parts: bool = True
    broken_off: list[int] = field(default_factory=list)
    """For each of the next answers with content, after how many bytes it ends; negative, never."""
    status: int | None = None
    """What every request gets, in place of an answer."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Methods, paths and ranges."""
    url: str = ""
    arrived: threading.Event = field(default_factory=threading.Event)
    """Set by each request for content that the gate is for."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Content is sent while it is set, as it is at first."""
    gated: str = ""
    """The one file that the gate is for; empty, all are."""

    def add(self, folder: Path) -> None:
        """Have every file below a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[str(path.relative_to(folder))] = path.read_bytes()

    def gets(self, path: str) -> list[str | None]:
        """Return the ranges that were asked for of a file."""
        return [part for method, asked, part in self.requests if method == "GET" and asked == path]


@contextlib.contextmanager
def web_server(certificate: Path | None = None, key: Path | None = None) -> Iterator[WebServer]:
    """Serve until the end, by https where there is a certificate."""
    state = WebServer()
    state.gate.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path, part = unquote(self.path.lstrip("/").partition("?")[0]), self.headers.get("Range")
            state.requests.append((self.command, path, part))
            content = state.files.get(path)
            if state.status is not None or content is None:
                self.send_response(state.status or 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if with_body and state.gated in ("", path):
                state.arrived.set()
                state.gate.wait(60)
            self._send(content, part, with_body=with_body)

        def _send(self, content: bytes, part: str | None, *, with_body: bool) -> None:
            tag = hashlib.sha256(content).hexdigest()[:16]
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", part or "") if state.sends_parts else None
            first, last = (int(span[1]), min(int(span[2]), len(content) - 1)) if span else (0, len(content) - 1)
            self.send_response(206 if span else 200)
            self.send_header("ETag", f'"{tag}"')
            self.send_header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
            if span:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            if not with_body:
                return
            limit = state.broken_off.pop(0) if state.broken_off else -1
            body = content[first : last + 1]
            self.wfile.write(body if limit < 0 else body[:limit])
            self.close_connection = 0 <= limit < len(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    state.url = f"{scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
