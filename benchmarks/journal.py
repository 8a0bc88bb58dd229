"""Rows of figures that are kept as they come: what is cut off loses nothing before."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


class Journal:
    """Rows as lines of JSON, in a file and on the terminal, each at once; and the time that is left."""

    def __init__(self, path: Path, budget_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        self._began_s = time.monotonic()
        self._budget_s = budget_s

    @property
    def left_s(self) -> float:
        """Seconds until no more is begun."""
        return self._began_s + self._budget_s - time.monotonic()

    def write(self, kind: str, **figures: Any) -> None:
        """Add a row."""
        line = json.dumps({"kind": kind, "at_s": round(time.monotonic() - self._began_s, 1), **figures})
        for stream in (self._file, sys.stdout):
            print(line, file=stream, flush=True)

    def close(self) -> None:
        """End the file."""
        self._file.close()
