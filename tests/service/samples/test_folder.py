"""The files of a sample: whole, within their space, and the only ones that are touched."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.samples import folder as module
from service.samples.folder import LOCK_FILE, SampleFolder, TooLargeForFolder

ROOT = Path(__file__).parents[3]
KILLED = """
import os, pathlib, signal, sys
from service.samples import folder

def stop(descriptor):
    print("writing", flush=True)
    signal.pause()

folder.os.fsync = stop
folder.SampleFolder(pathlib.Path(sys.argv[1]), max_bytes=1000).add("tiny", 1, b"half")
"""


def files_in(path: Path) -> list[bytes]:
    return [each.read_bytes() for each in sorted(path.glob("*.parquet"))]


def test_the_oldest_make_way_and_files_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "20200101T000000Z-notes.parquet").write_bytes(b"o" * 5000)
    (tmp_path / "a.parquet").mkdir()
    folder = SampleFolder(tmp_path / "sample", max_bytes=1000)
    folder.prepare()
    assert (tmp_path / "sample").stat().st_mode & 0o777 == 0o700
    (tmp_path / "sample" / "20200101T000000Z-notes.parquet").write_bytes(b"o" * 5000)
    for second in range(9):
        monkeypatch.setattr(module.time, "strftime", lambda _form, _time, second=second: f"20261128T10220{second}Z")
        path = folder.add("a.b-c", 2, bytes([second]) * 300)
        assert path.stat().st_mode & 0o777 == 0o600
    contents = files_in(tmp_path / "sample")
    assert contents == [b"o" * 5000, *(bytes([second]) * 300 for second in (6, 7, 8))]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "20200101T000000Z-notes.parquet", "a.parquet", "sample",
    ]  # fmt: skip


def test_a_file_that_never_finds_room_is_refused_and_takes_nothing_away(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path, max_bytes=1000)
    folder.add("tiny", 1, b"small")
    with pytest.raises(TooLargeForFolder):
        folder.add("tiny", 1, b"x" * 1001)
    assert files_in(tmp_path) == [b"small"]


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SampleFolder(tmp_path, max_bytes=1000)
    write = os.write

    def full(descriptor: int, content: memoryview) -> int:
        if len(content) > 50:
            return write(descriptor, content[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        folder.add("tiny", 1, b"x" * 100)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    monkeypatch.undo()
    folder.add("tiny", 1, b"x" * 100)
    assert files_in(tmp_path) == [b"x" * 100]


def test_what_was_killed_in_the_midst_leaves_whole_files_alone(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path, max_bytes=1000)
    folder.add("tiny", 1, b"before")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert files_in(tmp_path) == [b"before"]
    assert list(tmp_path.glob(".*.unfinished"))
    folder.add("tiny", 1, b"after")  # the lock is nobody's
    assert sorted(files_in(tmp_path)) == [b"after", b"before"]
    assert not list(tmp_path.glob(".*"))


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"not ours")
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        SampleFolder(folder, max_bytes=1000).add("tiny", 1, b"x")
    assert (tmp_path / "elsewhere").read_bytes() == b"not ours"
