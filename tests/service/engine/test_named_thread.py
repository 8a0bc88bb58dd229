from __future__ import annotations

import threading
from pathlib import Path

import pytest

from service.engine.named_thread import NamedThread


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux has /proc")
@pytest.mark.parametrize(("name", "seen"), [("decode-3", "decode-3"), ("a-name-that-is-too-long", "a-name-that-is-")])
def test_the_kernel_knows_a_thread_by_its_name(name: str, seen: str) -> None:
    found: list[str] = []

    def look() -> None:
        found.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text())

    thread = NamedThread(target=look, name=name)
    thread.start()
    thread.join()
    assert found == [f"{seen}\n"]
