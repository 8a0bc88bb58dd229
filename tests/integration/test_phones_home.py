"""Nothing phones home: the service opens no connection of its own, as the kernel and the interpreter count them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import PATIENCE_S, ROOT

# Runs the service for a few requests and prints which outgoing connections there were. `connects` are those that the
# interpreter made outside the client's own; `snmp` the kernel's counters of the whole network namespace.
PROBE = r"""
import json, os, subprocess, sys, threading
from pathlib import Path

connects, own = [], []
looked_up = []

def audit(event, arguments):
    if event == "socket.connect":
        (own if getattr(client, "active", False) else connects).append(repr(arguments[1]))
    elif event == "socket.getaddrinfo" and arguments[0] != "127.0.0.1":
        looked_up.append(repr(arguments[0]))

client = threading.local()
sys.addaudithook(audit)

def counters():
    lines = Path("/proc/net/snmp").read_text().splitlines()
    tables = {}
    for names, values in zip(lines[::2], lines[1::2]):
        kind = names.split(":")[0]
        tables[kind] = dict(zip(names.split()[1:], map(int, values.split()[1:])))
    return {"tcp": tables["Tcp"]["ActiveOpens"], "udp": tables["Udp"]["OutDatagrams"]}

def main(repository, photo):
    from service.__main__ import main as serve
    from service.http.connection.server import Server
    import http.client

    serve_on = Server.serve_on

    def serve_and_ask(self, listener):
        def ask():
            client.active = True
            port = listener.getsockname()[1]
            body = Path(photo).read_bytes()
            started = self.ready.wait(60)
            for path in ("/health/ready", "/docs", "/metrics", "/v1/classify", "/v1/features", "/v1/classify"):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                method = "POST" if path.startswith("/v1") else "GET"
                connection.request(method, path, body if method == "POST" else None, {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
                connection.close()
            self.should_exit = True
        threading.Thread(target=ask).start()
        serve_on(self, listener)

    statuses = []
    startup = Server.startup

    async def started(self, sockets=None):
        await startup(self, sockets)
        await self.config.app.state.service.started.wait()
        self.ready.set()

    Server.ready = threading.Event()
    Server.startup = started
    Server.serve_on = serve_and_ask
    before = counters()
    status = serve(["--repository", repository, "--port", "0", "--log-level", "error"])
    after = counters()
    print(json.dumps({
        "status": status, "statuses": statuses, "connects": connects, "own": len(own), "looked_up": looked_up,
        "tcp": after["tcp"] - before["tcp"], "udp": after["udp"] - before["udp"],
        "telemetry_off": os.environ.get("ORT_DISABLE_TELEMETRY"),
    }))

main(*sys.argv[1:])
"""

ISOLATED = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def probe(repository: Path, tmp_path: Path, *prefix: str) -> dict[str, object]:
    from tests.service.pictures import photo

    file = tmp_path / "photo.jpg"
    file.write_bytes(photo("JPEG"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAT_", "ORT_"))}
    result = subprocess.run(
        [*prefix, sys.executable, "-c", PROBE, str(repository), str(file)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def namespaces_are_refused() -> str:
    try:
        trial = subprocess.run([*ISOLATED, "true"], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except FileNotFoundError as error:
        return str(error)
    return trial.stderr.strip() if trial.returncode else ""


def test_interpreter_sees_no_connection_nor_look_up_of_the_services_own(repository: Path, tmp_path: Path) -> None:
    seen = probe(repository, tmp_path)
    assert seen["statuses"] == [200] * 6
    assert (seen["connects"], seen["looked_up"], seen["own"]) == ([], [], 6)
    assert seen["telemetry_off"] == "1"


def test_kernel_counts_no_connection_but_the_clients(repository: Path, tmp_path: Path) -> None:
    if reason := namespaces_are_refused():
        pytest.skip(f"a network namespace cannot be made here: {reason}")
    seen = probe(repository, tmp_path, *ISOLATED)
    assert seen["statuses"] == [200] * 6
    assert (seen["tcp"], seen["udp"]) == (6, 0)
