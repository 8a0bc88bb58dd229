"""What a predictor says of image files, one after another, beneath a progress bar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from service.commands.terminal import progress
from service.images.files import read_image
from service.predictors.ordered import in_order
from service.predictors.types import Fault

R = TypeVar("R")


async def answers(
    files: Sequence[str],
    ask: Callable[[bytes], Awaitable[R | Fault]],
    *,
    concurrency: int,
    max_bytes: int,
    description: str,
    done: int = 0,
) -> AsyncGenerator[tuple[str, R | Fault], None]:
    """Yield each file with what `ask` says of its bytes, in order; close it where it may not be read to its end.

    Files larger than `max_bytes` are not read. `done` images besides need no answer, and are counted in the progress.
    """

    async def answer(path: str) -> R | Fault:
        data = await asyncio.to_thread(read_image, path, max_bytes)
        return data if isinstance(data, Fault) else await ask(data)

    with progress(done + len(files), description, done=done) as advance:
        async with aclosing(in_order(files, answer, concurrency=concurrency)) as results:
            async for each in results:
                yield each
                advance()
