"""What an export is doing, a line a step, with the time that each took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TextIO


class Progress:
    """Writes steps and notes to a stream, standard error in the command."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Say that a step begins, and when it is done, how long it took."""
        self._write(f"{title} ...")
        start_s = time.perf_counter()
        try:
            yield
        except BaseException:
            self._write(" failed\n")
            raise
        self._write(f" {time.perf_counter() - start_s:.1f} s\n")

    def more(self, text: str) -> None:
        """Say something in the line of a step that goes on."""
        self._write(f" {text}")

    def note(self, text: str) -> None:
        """Say something beside the steps."""
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
