from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.bulk.journal import INPUTS_FILE, LOCK_FILE, RUN_FILE, JournalError, open_journal
from tests.service.bulk.sets import write_files

RECORD = {"model": {"name": "tiny", "version": 3}, "top_k": 5}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files_of(tmp_path: Path, count: int = 3) -> list[str]:
    return [str(path) for path in write_files(tmp_path / "in", count)]


def test_a_run_that_is_continued_must_be_the_same(tmp_path: Path) -> None:
    files, out = files_of(tmp_path), tmp_path / "out"
    for _ in range(2):
        with open_journal(out) as journal:
            journal.begin(RECORD, files)
    differences = [
        (dict(RECORD, top_k=3), files, "top_k was 5 and is 3"),
        (dict(RECORD, more=1), files, "more was null and is 1"),
        ({"model": RECORD["model"]}, files, "top_k was 5 and is null"),
        (RECORD, files[:2], f"{files[2]} is no longer among its inputs"),
        (RECORD, files[1:], f"{files[0]} was where {files[1]} is now"),
    ]
    for record, given, difference in differences:
        with open_journal(out) as journal, pytest.raises(JournalError, match=difference):
            journal.begin(record, given)
    more = [*files, *map(str, write_files(tmp_path / "more", 1))]
    with open_journal(out) as journal, pytest.raises(JournalError, match=r"more/000\.png was not among its inputs"):
        journal.begin(RECORD, more)


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_file_that_has_changed_is_named(tmp_path: Path, change: str) -> None:
    files, out = files_of(tmp_path), tmp_path / "out"
    with open_journal(out) as journal:
        journal.begin(RECORD, files)
        changed = Path(files[1])
        status = changed.stat()
        if change == "size":
            changed.write_bytes(changed.read_bytes() + b".")
            os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
        else:
            os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        with pytest.raises(JournalError, match=f"{changed} has changed"):
            journal.begin(RECORD, files)


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path / "out"),
        pytest.raises(JournalError, match="another run is at work"),
        open_journal(tmp_path / "out"),
    ):
        pass
    with open_journal(tmp_path / "out"):
        pass


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(JournalError, match=r"holds letter\.txt, and no run"), open_journal(tmp_path):
        pass
    assert names(tmp_path) == ["letter.txt"]
    with pytest.raises(JournalError, match="cannot be written in"), open_journal(tmp_path / "a" / "b"):
        pass


def test_a_file_is_in_place_whole_or_not_at_all_and_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    with open_journal(tmp_path / "out") as journal:
        journal.begin(RECORD, [])
        part = journal.part_file(0)
        with journal.whole_file(part) as path:
            path.write_bytes(b"rows")
            assert not part.exists()

        def fail() -> None:
            with journal.whole_file(journal.part_file(1)) as path:
                path.write_bytes(b"half of the rows")
                raise LookupError

        with pytest.raises(LookupError):
            fail()
    (tmp_path / "out" / ".part-000001.parquet.unfinished").write_bytes(b"half")
    with open_journal(tmp_path / "out"):
        assert names(tmp_path / "out") == sorted([LOCK_FILE, INPUTS_FILE, RUN_FILE, "part-000000.parquet"])


def test_a_kill_before_the_run_was_recorded_leaves_a_folder_that_a_run_can_begin_in(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (LOCK_FILE, INPUTS_FILE, f".{INPUTS_FILE}.unfinished", f".{RUN_FILE}.unfinished"):
        (out / name).write_bytes(b"other")
    files = files_of(tmp_path)
    with open_journal(out) as journal:
        journal.begin(RECORD, files)
    with open_journal(out) as journal:
        journal.begin(RECORD, files)
    assert names(out) == sorted([LOCK_FILE, INPUTS_FILE, RUN_FILE])


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for content, reason in [('{"format": 99}', "the format 99"), ("{", "cannot be read")]:
            (tmp_path / RUN_FILE).write_text(content)
            with pytest.raises(JournalError, match=reason):
                journal.begin(RECORD, [])
