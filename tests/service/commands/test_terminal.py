from __future__ import annotations

import contextlib
import os
import pty
import sys
from io import RawIOBase

import pytest

from service.commands.terminal import printable, progress


def test_without_a_terminal_there_is_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    with progress(2, "working") as advance:
        advance()
        sys.stdout.write("a line\n")
    assert capfd.readouterr() == ("a line\n", "")


def test_on_a_terminal_the_bar_counts_and_lines_for_another_place_stay_out_of_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress(2, "working") as advance:
            advance()
            advance()
            sys.stdout.write("a line\n")
        terminal.close()
        shown = _all_of(screen)
    assert "working" in shown
    assert "2/2" in shown
    assert "a line" not in shown
    assert capfd.readouterr().out == "a line\n"


def _all_of(screen: RawIOBase) -> str:
    """Read what a terminal was sent, in however many pieces; once nobody writes to it, its end is an error."""
    pieces: list[bytes] = []
    with contextlib.suppress(OSError):
        while piece := screen.read(1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode()


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("a\x1b[2Jb\n\udcff é") == "a\\x1b[2Jb\\n\\udcff é"
