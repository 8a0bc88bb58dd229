"""What a run has done, as it is printed at its end."""

from __future__ import annotations

import json
import time

from service.bulk.parts import Part
from service.bulk.writing import Counts
from service.images.names import LeftOut


class Summary:
    """Counts finished parts, by this run and those before it; the clock runs from here on.

    `left_out` is what was left out of folders as the input was found.
    """

    def __init__(self, out: str, *, parts: int, left_out: LeftOut | None = None) -> None:
        self._out = out
        self._parts = parts
        self._done = self._resumed = 0
        self._before = Counts(0, 0, left_out or LeftOut())
        self._here = Counts(0, 0)
        self._began_s = self._ended_s = time.monotonic()

    @property
    def images(self) -> int:
        """Images of all finished parts."""
        return self._before.images + self._here.images

    @property
    def bad_images(self) -> int:
        """Those of them that are bad."""
        return self._before.bad + self._here.bad

    @property
    def left_out(self) -> LeftOut:
        """What was left out of folders and of the shards of all finished parts."""
        return self._before.left_out + self._here.left_out

    @property
    def images_per_s(self) -> float:
        """Rate of this run, from its start to the last part that it finished."""
        elapsed_s = self._ended_s - self._began_s
        return round(self._here.images / elapsed_s, 1) if elapsed_s else 0.0

    def resume(self, counts: Counts) -> None:
        """Count a part that an earlier run has finished."""
        self._done += 1
        self._resumed += 1
        self._before += counts

    def add(self, counts: Counts) -> None:
        """Count a part that this run has finished now."""
        self._done += 1
        self._here += counts
        self._ended_s = time.monotonic()

    def line(self, part: Part, counts: Counts) -> str:
        """Return a sentence about the part that was finished last."""
        bad = f", {counts.bad} of them bad" if counts.bad else ""
        left_out = f", left out {counts.left_out.describe()}" if counts.left_out else ""
        return (
            f"part {part.number}: {counts.images} images{bad}{left_out}; "
            f"{self._done} of {self._parts} parts, {self.images_per_s} images/s"
        )

    def as_json(self) -> str:
        """Return it all as one line."""
        return json.dumps(
            {
                "out": self._out,
                "complete": self._done == self._parts,
                "images": self.images,
                "bad_images": self.bad_images,
                "left_out": self.left_out.as_dict(),
                "parts": self._parts,
                "parts_done": self._done,
                "parts_resumed": self._resumed,
                "images_per_s": self.images_per_s,
                "seconds": round(self._ended_s - self._began_s, 3),
            }
        )
