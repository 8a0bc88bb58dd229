from __future__ import annotations

import pytest

from tests.service.engine.fakes import Running, ScriptedSession, running_in_process, running_in_thread


@pytest.fixture
def session() -> ScriptedSession:
    return ScriptedSession()


@pytest.fixture(scope="session", params=[running_in_thread, running_in_process], ids=["thread", "process"])
def running(request: pytest.FixtureRequest) -> Running:
    """Run an engine in each of the two shapes."""
    way: Running = request.param
    return way
