from __future__ import annotations

from pathlib import Path

from benchmarks.request_path import count_calls


async def test_calls_of_one_request_are_counted_once_in_every_thread(tmp_path: Path) -> None:
    counter = await count_calls(tmp_path)
    once = {
        ("service.http.routes.classify", "service.http.inference.infer"),  # a coroutine that is resumed several times
        ("service.images.pool", "service.calls.inference._decode_one"),  # in a thread that decodes
        ("service.engine.core", "service.engine.batcher.Batcher.next_batch"),  # in the engine's
    }
    assert {crossing: counter.crossings[crossing] for crossing in once} == dict.fromkeys(once, 1)
    assert {calling for calling, _ in once} <= counter.modules
    assert all(not called.startswith(f"{calling}.") for calling, called in counter.crossings)
