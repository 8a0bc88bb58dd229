"""Which call of `/v1` a platform's request means, with which parameters: these name it, as `call`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from service.errors import InvalidParameter

CALL, DEFAULT = "call", "classify"

T = TypeVar("T")


def call_of(name: object, calls: Mapping[str, T]) -> T:
    """Return what `calls` has for a name, the default one for None; raises InvalidParameter for any other."""
    chosen: Any = DEFAULT if name is None else name
    if not isinstance(chosen, str) or chosen not in calls:
        raise InvalidParameter(f"{CALL}: it is {' or '.join(calls)}, not {chosen!r}.")
    return calls[chosen]
