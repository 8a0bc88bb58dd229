from __future__ import annotations

from pathlib import Path

from service.commands.answers import answers
from service.predictors.types import Fault


async def test_every_file_has_an_answer_or_a_fault_in_order(tmp_path: Path) -> None:
    for name, content in {"a.png": b"a", "c.png": b"c", "large.png": bytes(101)}.items():
        (tmp_path / name).write_bytes(content)
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png", "large.png")]

    async def ask(data: bytes) -> str:
        return data.decode()

    seen = [each async for each in answers(files, ask, concurrency=2, max_bytes=100, description="asking")]
    assert [path for path, _ in seen] == files
    results = [result for _, result in seen]
    assert results[:3] == ["a", Fault("unreadable", "No such file or directory."), "c"]
    assert isinstance(results[3], Fault)
    assert results[3].code == "too_large"
