"""How long what keeps ending waits before it is started again."""

from __future__ import annotations

_FIRST_S = 0.1
_HEALTHY_S = 60.0


class RestartDelay:
    """The waits of one place that is to be filled: 0.1 s, doubled each time, up to `longest_s`.

    They begin anew when what was there has lived for a minute.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = max(longest_s, _FIRST_S)
        self._next_s = _FIRST_S

    def after(self, lived_s: float) -> float:
        """Return how many seconds to wait, now that what was there has ended after `lived_s`."""
        delay_s = _FIRST_S if lived_s >= _HEALTHY_S else self._next_s
        self._next_s = min(delay_s * 2, self._longest_s)
        return delay_s
