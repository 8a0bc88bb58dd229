"""What a command shows to people: its progress, on a terminal only, and what went wrong with which file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from service.images.names import LeftOut
from service.predictors.types import Fault


class Advance(Protocol):
    """Counts work that is done."""

    def __call__(self, pieces: int = 1) -> None:
        """Count pieces of it."""


def _nothing(pieces: int = 1) -> None:
    """Count for nobody."""


@contextmanager
def progress(total: int | None, description: str, *, done: int = 0) -> Iterator[Advance]:
    """Show a bar on standard error where that is a terminal; give what is called for each piece of work done.

    `total` is None where nobody knows it; `done` pieces of it were done before.
    """
    if not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Pieces a second, lately."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f}/s")

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    # What is printed to the same terminal goes above the bar; what is printed elsewhere is left alone.
    with Progress(
        *columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty(), redirect_stderr=True
    ) as bar:
        task = bar.add_task(description, total=total, completed=done)

        def advance(pieces: int = 1) -> None:
            bar.advance(task, pieces)

        yield advance


def printable(text: str) -> str:
    """Return text with control characters, and bytes of file names that are no text, escaped."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def report(path: str, fault: Fault) -> None:
    """Say on standard error what is wrong with a file."""
    print(f"dat-serve: {printable(path)}: {fault.code}: {printable(fault.detail)}", file=sys.stderr)


def report_left_out(left_out: LeftOut) -> None:
    """Say on standard error what was left out of folders, if anything was."""
    if left_out:
        say(f"left out of the files in folders: {printable(left_out.describe())}")


def say(sentence: str) -> None:
    """Say something on standard error."""
    print(f"dat-serve: {sentence}", file=sys.stderr)
