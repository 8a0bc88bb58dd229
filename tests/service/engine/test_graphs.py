"""An engine of two graphs: each run is of one of them, in the thread and in the process alike."""

from __future__ import annotations

import asyncio

import pytest

from service.engine.control import NotLoaded, Ready
from service.engine.graphs import graph_of
from service.engine.types import Answer, OutOfDeviceMemory, Outputs, Pixels
from service.errors import InferenceFailed, InvalidParameter
from tests.service.engine.fakes import (
    FIRST,
    LOGITS,
    MODEL,
    OTHER,
    Running,
    ScriptedSession,
    classify,
    colour,
    linked,
    model_graph,
    other_graph,
    until_queued,
)

GRAPHS = (model_graph(), other_graph())


def first(answer: Answer) -> float:
    return float(answer.outputs["first"][0])


@pytest.mark.parametrize(
    ("outputs", "key"), [(LOGITS, MODEL), (LOGITS | {"embedding"}, MODEL), (FIRST, OTHER)], ids=["one", "all", "other"]
)
def test_outputs_are_of_one_graph(outputs: frozenset[str], key: str) -> None:
    assert graph_of(outputs, GRAPHS).key == key


@pytest.mark.parametrize(
    ("outputs", "asked"),
    [(LOGITS | FIRST, "first, logits"), (LOGITS | {"stage9"}, "logits, stage9"), (frozenset(), "nothing")],
    ids=["both", "unknown", "none"],
)
def test_outputs_of_two_graphs_or_of_none_are_refused(outputs: frozenset[str], asked: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        graph_of(outputs, GRAPHS)
    assert str(refusal.value) == (
        f"The outputs of one call are some of logits, embedding, or of first; asked for was {asked}."
    )


async def test_classifying_and_explaining_never_share_a_run(session: ScriptedSession, running: Running) -> None:
    async with running(session, graphs=GRAPHS) as engine:
        session.hold()
        held = asyncio.create_task(classify(engine, 1))
        await session.run_started()
        calls = [
            asyncio.create_task(classify(engine, value, outputs=FIRST if value % 2 else LOGITS))
            for value in range(10, 18)
        ]
        await until_queued(engine, 9)
        session.let_go()
        answers = [(await call)[0] for call in calls]
        await held
    assert [first(answer) if value % 2 else colour(answer) for value, answer in enumerate(answers)] == list(
        range(10, 18)
    )
    assert [(size, outputs) for size, outputs in session.runs] == [(1, ("logits",)), (4, ("logits",)), (4, ("first",))]
    assert [set(answer.outputs) for answer in answers] == [{"logits"}, {"first"}] * 4


@pytest.mark.parametrize("outputs", [LOGITS | FIRST, frozenset({"stage9"})], ids=["both", "unknown"])
async def test_outputs_that_are_refused_take_no_room(
    session: ScriptedSession, running: Running, outputs: frozenset[str]
) -> None:
    async with running(session, graphs=GRAPHS) as engine:
        with pytest.raises(InvalidParameter):
            await classify(engine, 1, outputs=outputs)
        assert engine.slots_in_use == 0
        assert session.runs == []


async def test_a_failed_explanation_leaves_the_next_classification_alone(
    session: ScriptedSession, running: Running
) -> None:
    async with running(session, graphs=GRAPHS) as engine:
        session.faults.append(RuntimeError("broken"))
        with pytest.raises(InferenceFailed):
            await classify(engine, 1, outputs=FIRST)
        assert colour((await classify(engine, 2))[0]) == 2
        assert engine.healthy


async def test_halves_of_what_ran_out_of_memory_are_of_the_same_graph(
    session: ScriptedSession, running: Running
) -> None:
    async with running(session, graphs=GRAPHS) as engine:
        session.faults.append(OutOfDeviceMemory("too many"))
        answers = await classify(engine, 1, 2, 3, outputs=FIRST)
        assert [first(answer) for answer in answers] == [1, 2, 3]
        assert session.runs == [(4, ("first",)), (2, ("first",)), (1, ("first",))]
        session.runs.clear()
        await classify(engine, 1, 2, 3)
        assert session.runs == [(4, ("logits",))]  # whose sizes were not at fault


async def test_second_graph_is_warmed_up_in_every_size_that_it_is_run_with(
    session: ScriptedSession,
) -> None:
    async with linked(session, graphs=(model_graph(1, 4, 16), other_graph(1, 4))) as served:
        await served.client.wait_ready()
        warmed = {size for size, outputs in session.runs if outputs == ("first",)}
        assert warmed == {1, 4}
        assert {size for size, outputs in session.runs if outputs == ("logits",)} == {1, 4, 16}


async def test_engine_whose_second_graph_gives_something_else_than_promised_does_not_start() -> None:
    class Other(ScriptedSession):
        def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
            results = super().run(images, outputs)
            return {name: value.repeat(2, -1) if name == "first" else value for name, value in results.items()}

    async with linked(Other(), graphs=GRAPHS) as served:
        assert await asyncio.to_thread(served.control.receive) == (Ready(), [])
        failed = await asyncio.to_thread(served.control.receive)
    assert failed is not None
    assert isinstance(failed[0], NotLoaded)
    assert "first" in failed[0].sentence


async def test_each_graph_is_run_by_the_session_that_was_loaded_for_it(running: Running) -> None:
    session, other = ScriptedSession(), ScriptedSession()
    sessions = {MODEL: session, OTHER: other}
    async with running(session, graphs=GRAPHS, load=lambda graph: sessions[graph.key]) as engine:
        other.runs.clear()
        await classify(engine, 1)
        await classify(engine, 2, outputs=FIRST)
    assert (session.runs, other.runs) == ([(1, ("logits",))], [(1, ("first",))])
