"""An S3 server in the test's process, in memory, with buckets that tests fill."""

from __future__ import annotations

import contextlib
import itertools
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from moto.server import ThreadedMotoServer
from obstore.store import from_url

SECRET = "the-secret-key-of-the-object-store"
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Bucket:
    """A bucket with a prefix, to be filled and emptied."""

    url: str
    store: Any

    def put(self, path: str, content: bytes) -> None:
        obstore.put(self.store, path, content)

    def add(self, folder: Path) -> None:
        """Put every file below a folder, the manifests last."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == "manifest.json"):
            self.put(str(path.relative_to(folder)), path.read_bytes())

    def remove(self, prefix: str) -> None:
        """Remove every file below a prefix."""
        paths = [meta["path"] for page in obstore.list(self.store) for meta in page]
        obstore.delete(self.store, [path for path in paths if path.startswith(prefix)])


@dataclass
class ObjectStore:
    """The server, which can be ended before the test is."""

    server: ThreadedMotoServer
    endpoint: str

    def bucket(self) -> Bucket:
        """Make a bucket that no test had before."""
        name = f"models-{os.getpid()}-{next(_NUMBERS)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        url = f"s3://{name}/of/a team"
        return Bucket(url, from_url(url, client_options={"allow_http": True}))


def environment_of(endpoint: str) -> dict[str, str]:
    """Return the variables by which the cloud's own programs would find the server and its keys."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Run a server until the end, which the process's environment names meanwhile."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    before = dict(os.environ)
    os.environ.update(environment_of(endpoint))
    try:
        yield ObjectStore(server, endpoint)
    finally:
        server.stop()
        os.environ.clear()
        os.environ.update(before)
