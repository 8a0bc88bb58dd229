"""A model with a second graph: each run is of one of them, in the thread and in the process alike."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.engine.explaining import ModelWithExplain
from service.engine.types import Answer, ExplainingSession, OutOfDeviceMemory, Outputs, Pixels, StagingSession
from service.errors import InferenceFailed, InvalidParameter
from tests.service.engine.fakes import (
    FIRST,
    LOGITS,
    ExplainingScriptedSession,
    Running,
    ScriptedSession,
    classify,
    colour,
    linked,
    until_queued,
)

BOTH = LOGITS | FIRST


@pytest.fixture
def session() -> ExplainingScriptedSession:
    return ExplainingScriptedSession()


def first(answer: Answer) -> float:
    return float(answer.outputs["first"][0])


async def test_classifying_and_explaining_never_share_a_run(
    session: ExplainingScriptedSession, running: Running
) -> None:
    async with running(session) as engine:
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


async def test_outputs_of_both_graphs_at_once_are_refused(session: ExplainingScriptedSession, running: Running) -> None:
    async with running(session) as engine:
        assert (engine.output_names, engine.explain_names) == (("logits", "embedding"), ("first",))
        with pytest.raises(InvalidParameter, match="outputs are first"):
            await classify(engine, 1, outputs=BOTH)
        assert engine.slots_in_use == 0


async def test_a_model_without_the_second_graph_does_not_know_its_outputs(running: Running) -> None:
    async with running(ScriptedSession()) as engine:
        assert engine.explain_names == ()
        with pytest.raises(InvalidParameter, match="outputs are logits, embedding"):
            await classify(engine, 1, outputs=FIRST)


async def test_a_failed_explanation_leaves_the_next_classification_alone(
    session: ExplainingScriptedSession, running: Running
) -> None:
    async with running(session) as engine:
        session.faults.append(RuntimeError("broken"))
        with pytest.raises(InferenceFailed):
            await classify(engine, 1, outputs=FIRST)
        assert colour((await classify(engine, 2))[0]) == 2
        assert engine.healthy


async def test_halves_of_what_ran_out_of_memory_are_of_the_same_graph(
    session: ExplainingScriptedSession, running: Running
) -> None:
    async with running(session) as engine:
        session.faults.append(OutOfDeviceMemory("too many"))
        answers = await classify(engine, 1, 2, 3, outputs=FIRST)
        assert [first(answer) for answer in answers] == [1, 2, 3]
        assert session.runs == [(4, ("first",)), (2, ("first",)), (1, ("first",))]
        session.runs.clear()
        await classify(engine, 1, 2, 3)
        assert session.runs == [(4, ("logits",))]  # whose sizes were not at fault


async def test_second_graph_is_warmed_up_in_every_size_that_it_is_run_with(
    session: ExplainingScriptedSession,
) -> None:
    async with linked(session, buckets=(1, 4, 16)) as served:
        await served.client.wait_ready()
        warmed = {size for size, outputs in session.runs if outputs == ("first",)}
        assert warmed == {1, 4}
        assert {size for size, outputs in session.runs if outputs == ("logits",)} == {1, 4, 16}


async def test_engine_whose_second_graph_gives_something_else_than_promised_does_not_start() -> None:
    class Other(ExplainingScriptedSession):
        def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
            results = super().run(images, outputs)
            return {name: value.repeat(2, -1) if name == "first" else value for name, value in results.items()}

    async with linked(Other()) as served:
        failed = await asyncio.to_thread(served.control.receive)
    assert failed is not None
    assert "first" in str(failed[0])


def test_pair_of_sessions_is_one_that_explains() -> None:
    class Explain(ScriptedSession):
        output_names = ("first",)

        def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
            self.runs.append((len(images), outputs))
            return {"first": images[:, 0, 0, :1].astype(np.float32)}

        def staging(self, images: int) -> Pixels:
            raise AssertionError("the model's own memory is enough")

    class Model(ScriptedSession):
        def staging(self, images: int) -> Pixels:
            return np.zeros((images, *self.input_shape), np.uint8)

    model, explain = Model(), Explain()
    pair = ModelWithExplain(model, explain)
    assert isinstance(pair, ExplainingSession)
    assert isinstance(pair, StagingSession)
    images = pair.staging(2)
    images[1] = 7
    assert pair.run(images, ("first",))["first"].tolist() == [[0], [7]]
    assert pair.run(images, ("logits",))["logits"][1].tolist() == [7 * 24, 7]
    assert (model.runs, explain.runs) == ([(2, ("logits",))], [(2, ("first",))])
