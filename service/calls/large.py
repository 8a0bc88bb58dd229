"""Work on many values goes to a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

THREAD_FROM_BYTES = 64 * 1024
"""Values of about this size or more are worked on in a thread, so that the event loop goes on serving others."""

T = TypeVar("T")


async def in_thread_if_large(size_bytes: int, make: Callable[[], T]) -> T:
    """Return `make()`, called in a thread where it has about `size_bytes` of values to work on."""
    return make() if size_bytes < THREAD_FROM_BYTES else await asyncio.to_thread(make)
