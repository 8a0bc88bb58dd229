from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.predictors.groups import GroupLimits, Groups


class Wire:
    """Holds requests back until they are let go."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.gate = asyncio.Event()
        self.failure: Exception | None = None

    async def send(self, images: Sequence[bytes]) -> list[bytes]:
        self.sent.append(list(images))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [image.upper() for image in images]


async def asked(gathered: Groups[bytes], *images: bytes) -> list[asyncio.Task[bytes]]:
    tasks = [asyncio.create_task(gathered.ask(image)) for image in images]
    for _ in range(3):  # the askers' first step, the requests', and the sends'
        await asyncio.sleep(0)
    return tasks


async def test_requests_leave_at_once_and_later_ones_carry_what_waits() -> None:
    wire = Wire()
    gathered = Groups(wire.send, requests=2, limits=GroupLimits())
    tasks = await asked(gathered, b"a", b"b", b"c", b"d", b"e")
    assert wire.sent == [[b"a"], [b"b"]]
    wire.gate.set()
    assert await asyncio.gather(*tasks) == [b"A", b"B", b"C", b"D", b"E"]
    assert wire.sent[2] == [b"c", b"d", b"e"]


async def test_groups_are_bounded_in_images_and_in_bytes() -> None:
    wire = Wire()
    limits = GroupLimits(images=3, size_bytes=15, part_bytes=2)
    gathered = Groups(wire.send, requests=1, limits=limits)
    tasks = await asked(gathered, b"-", b"a", b"b", b"c", b"d", b"e" * 20, b"f" * 6, b"g" * 6)
    wire.gate.set()
    await asyncio.gather(*tasks)
    assert [len(group) for group in wire.sent] == [1, 3, 1, 1, 1, 1]
    assert max(len(image) for image in wire.sent[3]) == 20


def test_a_server_can_make_groups_smaller_and_not_larger() -> None:
    ours = GroupLimits(images=16, size_bytes=1000)
    assert ours.within(max_images=4, max_body_bytes=100) == GroupLimits(images=4, size_bytes=100)
    assert ours.within(max_images=64, max_body_bytes=10_000) == ours


async def test_a_failure_is_raised_to_everybody_in_its_group_alone() -> None:
    wire = Wire()
    gathered = Groups(wire.send, requests=1, limits=GroupLimits())
    (alone, *together) = await asked(gathered, b"a", b"b", b"c")
    wire.gate.set()
    assert await alone == b"A"
    wire.failure = LookupError("gone")
    ends = await asyncio.gather(*together, return_exceptions=True)
    assert [type(end) for end in ends] == [LookupError, LookupError]
    wire.failure = None
    assert await gathered.ask(b"d") == b"D"


async def test_an_image_that_nobody_waits_for_any_more_is_not_sent() -> None:
    wire = Wire()
    gathered = Groups(wire.send, requests=1, limits=GroupLimits())
    first, second, third = await asked(gathered, b"a", b"b", b"c")
    second.cancel()
    wire.gate.set()
    assert (await first, await third) == (b"A", b"C")
    assert wire.sent == [[b"a"], [b"c"]]


async def test_closing_cancels_what_is_under_way() -> None:
    wire = Wire()
    gathered = Groups(wire.send, requests=1, limits=GroupLimits())
    (task,) = await asked(gathered, b"a")
    task.cancel()
    await gathered.close()
    assert [each for each in asyncio.all_tasks() if each is not asyncio.current_task() and each is not task] == []
