"""Copies of single files, from a web server that breaks off, lies, or sends whole files only."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import RemoteFailed, RepositoryError, StartupError
from service.remote import download as module
from service.remote import store as store_module
from service.remote.address import RemoteAddress
from service.remote.download import TimedProgress, download
from service.remote.store import RemoteStore
from tests.web_server import WebServer, web_server

CONTENT = bytes(range(256)) * 40
PART_BYTES = 1000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(module, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(store_module, "_RETRIES", 0)
    with web_server() as running:
        running.files["models/f.bin"] = CONTENT
        yield running


class Copy:
    """One copy, with the pauses that it made and the bytes that it told of."""

    def __init__(self, server: WebServer, target: Path) -> None:
        self.store = RemoteStore(RemoteAddress(f"{server.url}/models"))
        self.target = target
        self.pauses_s: list[float] = []
        self.told = 0

    def make(self, content: bytes = CONTENT) -> None:
        download(
            self.store, "f.bin", self.target, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content),
            progress=self._tell, pause=self.pauses_s.append,
        )  # fmt: skip

    def _tell(self, count: int) -> None:
        self.told += count


@pytest.fixture
def copy(server: WebServer, tmp_path: Path) -> Copy:
    return Copy(server, tmp_path / "f.bin")


def test_a_file_is_read_in_parts(server: WebServer, copy: Copy) -> None:
    copy.make()
    assert copy.target.read_bytes() == CONTENT
    assert copy.told == len(CONTENT)
    assert len(server.gets("models/f.bin")) == -(-len(CONTENT) // PART_BYTES)
    assert copy.pauses_s == []


def test_a_broken_download_goes_on_where_it_was(server: WebServer, copy: Copy) -> None:
    server.broken_off = [-1, -1, 10, 0, -1]
    copy.make()
    assert copy.target.read_bytes() == CONTENT
    assert len(copy.pauses_s) >= 1
    asked = server.gets("models/f.bin")
    assert asked.count("bytes=0-999") == asked.count("bytes=1000-1999") == 1


def test_a_later_attempt_reads_what_is_lacking_and_no_more(server: WebServer, copy: Copy) -> None:
    copy.target.write_bytes(CONTENT[:9500])
    copy.make()
    assert copy.target.read_bytes() == CONTENT
    assert server.gets("models/f.bin") == ["bytes=9500-10239"]
    assert copy.told == len(CONTENT)


@pytest.mark.parametrize("begun", [b"of another file", CONTENT[:50] + b"?" + CONTENT[51:9000], CONTENT + b"longer"])
def test_what_was_there_and_is_not_right_is_read_anew(server: WebServer, copy: Copy, begun: bytes) -> None:
    copy.target.write_bytes(begun)
    copy.make()
    assert copy.target.read_bytes() == CONTENT


def test_a_server_that_stays_broken_ends_the_copy_which_keeps_what_came(server: WebServer, copy: Copy) -> None:
    server.broken_off = [-1, -1, *[0] * 1000]
    with pytest.raises(RemoteFailed, match="cannot be read"):
        copy.make()
    assert copy.target.read_bytes() == CONTENT[: 2 * PART_BYTES]
    assert copy.pauses_s == sorted(copy.pauses_s)
    server.broken_off = []
    copy.make()
    assert copy.target.read_bytes() == CONTENT


def test_a_server_without_parts_is_read_whole_and_again_when_it_breaks(server: WebServer, copy: Copy) -> None:
    server.sends_parts = False
    server.broken_off = [-1, 5000, -1]
    copy.make()
    assert copy.target.read_bytes() == CONTENT


@pytest.mark.parametrize("sends_parts", [True, False])
def test_another_content_of_the_same_length_is_refused_and_not_kept(
    server: WebServer, copy: Copy, sends_parts: bool
) -> None:
    server.sends_parts = sends_parts
    server.files["models/f.bin"] = CONTENT[::-1]
    with pytest.raises(RepositoryError, match=f"has sha256 {hashlib.sha256(CONTENT[::-1]).hexdigest()}, expected"):
        copy.make()
    assert not copy.target.exists()


@pytest.mark.parametrize("sends_parts", [True, False])
def test_a_file_that_is_too_short_is_refused(server: WebServer, copy: Copy, sends_parts: bool) -> None:
    server.sends_parts = sends_parts
    server.files["models/f.bin"] = CONTENT[:5000]
    with pytest.raises(RemoteFailed):
        copy.make()


def test_a_file_that_goes_on_for_ever_is_not_read_on(server: WebServer, copy: Copy) -> None:
    server.sends_parts = False
    server.files["models/f.bin"] = CONTENT * 100
    with pytest.raises(RepositoryError, match="has more bytes than the 10240 that are expected"):
        copy.make()
    assert copy.target.stat().st_size == 0
    assert copy.pauses_s == []


def test_progress_is_told_every_few_seconds() -> None:
    now_s, said = [0.0], list[int]()
    progress = TimedProgress(said.append, clock=lambda: now_s[0])
    for _ in range(10):
        now_s[0] += 2
        progress(10)
    assert said == [30, 60, 90]


def test_without_the_library_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StartupError, match=r"s3://b: obstore is not installed; requirements/remote.txt has"):
        RemoteStore(RemoteAddress("s3://b"))
