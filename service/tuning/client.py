"""The clients: a closed loop of so many requests in flight, each client asking again as soon as it is answered.

They share the machine's cores with the server, so requests are rendered once and answers parsed no further than their
status and length. What they cost is measured with each window.

Answers come in bursts, a batch at a time. A window therefore begins and ends with an answer, and what arrived between
the two is counted: one that began and ended by the clock would gain or lose a batch by chance.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.tuning.figures import Figures

_OK = 200
_BROKEN = 0
"""In place of a status: the connection ended before the answer was there."""
_MIN_ANSWERS = 10
"""A window lasts until so many requests have ended, and each client's twice."""
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PAUSE_S = 0.05
"""After a connection that was lost, so that a server that is gone is not asked without end."""


class ServerLost(Exception):
    """The server takes no connections any more."""


@dataclass(slots=True)
class _Loop:
    """One window's requests and how they ended: time of the end, latency in seconds, status.

    Those that end when the window is over, with fewer and fewer of them in flight, do not count.
    """

    port: int
    requests: Iterator[bytes]
    began_s: float
    ends_s: float
    least: int
    ended: list[tuple[float, float, int]] = field(default_factory=list)
    is_over: bool = False

    async def client(self) -> None:
        """Ask over and over, on one connection as long as it lasts."""
        while not self.is_over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                raise ServerLost(str(error)) from error
            try:
                while not self.is_over and await self._ask(reader, writer):
                    pass
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send one request and wait for its end; false where the connection can carry no other."""
        asked_s = time.monotonic()
        status = _BROKEN
        try:
            writer.write(next(self.requests))
            head = await reader.readuntil(b"\r\n\r\n")
            length = _CONTENT_LENGTH.search(head)
            await reader.readexactly(int(length[1]) if length else 0)
            status = int(head[9:12])
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(_PAUSE_S)
        now_s = time.monotonic()
        self.is_over = self.is_over or (now_s > self.ends_s and len(self.ended) >= self.least)
        if not self.is_over:
            self.ended.append((now_s, now_s - asked_s, status))
        return status == _OK


async def drive(port: int, requests: Iterator[bytes], *, concurrency: int, lead_s: float, window_s: float) -> Figures:
    """Keep `concurrency` requests in flight for `lead_s`, which does not count, and `window_s`, which does.

    Slow servers are given longer. Those in flight at the end are waited for. Raises ServerLost.
    """
    began_s, cpu_s = time.monotonic(), time.process_time()
    loop = _Loop(
        port, requests, began_s + lead_s, began_s + lead_s + window_s, least=max(_MIN_ANSWERS, 2 * concurrency)
    )
    try:
        async with asyncio.TaskGroup() as clients:
            for _ in range(concurrency):
                clients.create_task(loop.client())
    except* ServerLost as lost:
        raise ServerLost(str(lost.exceptions[0])) from lost
    share = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
    return figures(loop.ended, began_s=loop.began_s, client_share=share)


def figures(ended: Sequence[tuple[float, float, int]], *, began_s: float, client_share: float = 0.0) -> Figures:
    """Return what requests that ended say, given as time of the end, latency in seconds and status, in that order.

    The window begins with the last end before `began_s`, or the first where there is none, and lasts to the last.
    """
    first = max((number for number, each in enumerate(ended) if each[0] <= began_s), default=0)
    counted = ended[first + 1 :]
    latencies_ms = sorted(latency_s * 1000 for _, latency_s, status in counted if status == _OK)
    failed = len(counted) - len(latencies_ms)
    if not latencies_ms:
        return Figures(0.0, math.inf, math.inf, failed, client_share)
    duration_s = max(counted[-1][0] - ended[first][0], 1e-9)
    p50_ms, p95_ms = (latencies_ms[math.ceil(share * len(latencies_ms)) - 1] for share in (0.5, 0.95))
    return Figures(len(latencies_ms) / duration_s, p50_ms, p95_ms, failed, client_share)
