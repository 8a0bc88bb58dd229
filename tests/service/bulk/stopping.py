"""The command line in a process that stops at a chosen step and says where, so that it can be killed right there.

    python -m tests.service.bulk.stopping NUMBER KIND bulk ...

Steps are before and after everything that touches the disk (a flush, a renaming, a group of rows, the end of a part's
file) and each row that is taken. At the step of that number, from 1, among those of the kind, or of all kinds where
that is "any", the process writes the kind to standard output and waits for ever.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.__main__ import main
from service.bulk.writing import PartWriter

_steps: Counter[str] = Counter()
_lock = threading.Lock()


def stop_around(owner: Any, name: str, stop: tuple[int, str]) -> None:
    """Make a function two steps, one before and one after it."""
    function: Callable[..., Any] = getattr(owner, name)

    def stopping(*arguments: Any, **named: Any) -> Any:
        step(f"before {name}", *stop)
        result = function(*arguments, **named)
        step(f"after {name}", *stop)
        return result

    setattr(owner, name, stopping)


def step(kind: str, number: int, of: str) -> None:
    if of not in (kind, "any"):
        return
    with _lock:
        _steps[of] += 1
        if _steps[of] == number:
            print(kind, flush=True)  # noqa: T201
            threading.Event().wait()


if __name__ == "__main__":
    stop = int(sys.argv[1]), sys.argv[2]
    stop_around(os, "fsync", stop)
    stop_around(Path, "replace", stop)
    for name in ("add", "write", "close"):
        stop_around(PartWriter, name, stop)
    sys.exit(main(sys.argv[3:]))
