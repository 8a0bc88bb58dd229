"""A model, a clock and an observer that do as a test tells them."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from service.engine.board import Board
from service.engine.client import EngineClient
from service.engine.control import Attach, ControlSocket, End, Load, Unload, Unloaded
from service.engine.core import DropReason
from service.engine.device_turns import DeviceTurns
from service.engine.graphs import FreeSize, Graph
from service.engine.in_process import InProcessEngine
from service.engine.linked import LinkedEngine
from service.engine.process import EngineProcess
from service.engine.remote import RemoteEngine
from service.engine.reservation import Reservation
from service.engine.room import Room
from service.engine.shared import Geometry, SharedSlots
from service.engine.types import Answer, Outputs, Pixels, Priority, Shape, WorkItem, pixels_of

LOGITS = frozenset({"logits"})
FIRST = frozenset({"first"})
MODEL, OTHER = "model", "other"
"""Keys of the graphs that most tests have, and that tests of two graphs have besides."""
PATIENCE_S = 30.0
"""How long a test waits for what must happen before it calls it a failure."""


OWN: Shape = (2, 4)
"""The shape of a ScriptedSession's own images."""


def free_outputs(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of a ScriptedSession's outputs for images of any shape."""
    return {"logits": (2,), "embedding": (pixels_of(shape) * 3,)}


def free_graph(*buckets: int, max_pixels: int = 64) -> Graph:
    """The graph of a ScriptedSession that takes images of other shapes as well."""
    free = FreeSize(free_outputs, max_pixels, max_output_bytes=(2 + max_pixels * 3) * 4)
    return replace(model_graph(*buckets), free=free)


def model_graph(*buckets: int, **outputs: tuple[int, ...]) -> Graph:
    """The graph of a ScriptedSession; `outputs` are shapes where it should have others."""
    return Graph(MODEL, {"logits": (2,), "embedding": (24,)} | outputs, buckets or (1, 2, 4), timed=("logits",))


def other_graph(*buckets: int) -> Graph:
    """A second graph, which the same session runs."""
    return Graph(OTHER, {"first": (1,)}, buckets or (1, 2, 4), timed=("first",))


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class ScriptedSession:
    """A model whose answers are functions of each image's pixels alone, and whose runs a test can hold or fail.

    `logits` of an image is (sum of its pixels, its first pixel), `embedding` its pixels as they are, and `first`, which
    is of a second graph, its first pixel. A run of both graphs is refused, and one of images of another shape than
    `input_shape` unless `free_size` is set.
    """

    input_shape = (*OWN, 3)

    def __init__(self) -> None:
        self.runs: list[tuple[int, tuple[str, ...]]] = []
        """Bucket and outputs of every run, warm-up included."""
        self.shapes: list[Shape] = []
        """Height and width of the images of every run."""
        self.free_size = False
        self.faults: deque[BaseException | None] = deque()
        """What the next runs raise, in order; None for a run that succeeds."""
        self.clock: FakeClock | None = None
        self.run_s, self.image_s = 1.0, 0.0
        """What every run, and every image of it, adds to the clock: large batches are cheap unless a test says so."""
        self._held = False
        self._started = threading.Semaphore(0)
        self._go = threading.Semaphore(0)

    def staging(self, size_bytes: int) -> Pixels:
        return np.zeros(size_bytes, np.uint8)

    def run(self, images: Pixels, outputs: tuple[str, ...]) -> Outputs:
        assert FIRST.isdisjoint(outputs) or set(outputs) == FIRST, f"{outputs} are of two graphs"
        assert images.dtype == np.uint8
        assert self.free_size or images.shape[1:] == self.input_shape
        self.shapes.append(images.shape[1:3])
        self.runs.append((len(images), outputs))
        pixels = images.astype(np.float32).reshape(len(images), -1)
        if self._held:
            self._started.release()
            assert self._go.acquire(timeout=PATIENCE_S), "the test never let the run go on"
        if self.clock is not None:
            self.clock.now_s += self.run_s + self.image_s * len(images)
        fault = self.faults.popleft() if self.faults else None
        if fault is not None:
            raise fault
        logits = np.stack([pixels.sum(1), pixels[:, 0]], axis=1)
        answers = {"logits": logits, "embedding": pixels, "first": pixels[:, :1]}
        return {name: answers[name] for name in outputs}

    def hold(self) -> None:
        """Let every run from now on wait in the middle."""
        self._held = True

    async def run_started(self) -> None:
        """Wait until one more held run has begun."""
        assert await asyncio.to_thread(self._started.acquire, timeout=PATIENCE_S), "no run began"

    def let_go(self) -> None:
        """Let the runs held now or later end."""
        self._held = False
        self._go.release(100)

    def let_one_go(self) -> None:
        """Let one held run end."""
        self._go.release()


class RecordingObserver:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        """Bucket and images of every batch that was run."""
        self.queue_s: list[float] = []
        self.inference_s: list[float] = []
        self.failed: list[tuple[int, int]] = []
        self.drops: list[tuple[DropReason, int]] = []

    def batch_ran(self, *, bucket: int, queue_s: Sequence[float], inference_s: float) -> None:
        self.batches.append((bucket, len(queue_s)))
        self.queue_s += queue_s
        self.inference_s.append(inference_s)

    def batch_failed(self, *, bucket: int, images: int) -> None:
        self.failed.append((bucket, images))

    def dropped(self, reason: DropReason, images: int) -> None:
        self.drops.append((reason, images))


_tickets = itertools.count()


def item(
    *,
    slot: int = 0,
    graph: str = MODEL,
    shape: Shape = OWN,
    outputs: frozenset[str] = LOGITS,
    priority: Priority = Priority.INTERACTIVE,
    deadline_s: float = math.inf,
    enqueued_s: float = 0.0,
) -> WorkItem:
    return WorkItem(next(_tickets), slot, graph, shape, outputs, priority, deadline_s, enqueued_s)


def in_s(seconds: float) -> float:
    return time.monotonic() + seconds


def paint(reservation: Reservation, index: int, value: int) -> None:
    """Write an image of one colour."""
    with reservation.writing(index) as pixels:
        pixels[...] = value


def colour(answer: Answer, shape: Shape = OWN) -> int:
    """The colour of the image that an answer with logits belongs to."""
    total, first = answer.outputs["logits"].tolist()
    assert total == first * pixels_of(shape) * 3
    return int(first)


async def classify(
    engine: EngineClient,
    *colours: int,
    outputs: frozenset[str] = LOGITS,
    deadline_s: float = math.inf,
    priority: Priority = Priority.INTERACTIVE,
    shape: Shape | None = None,
) -> list[Answer]:
    """One request, from reservation to answers."""
    with engine.reserve(len(colours), priority=priority, deadline_s=deadline_s, shape=shape) as reservation:
        for index, value in enumerate(colours):
            paint(reservation, index, value)
        return await reservation.infer(range(len(colours)), outputs)


async def until_queued(engine: EngineClient, images: int) -> None:
    """Let the tasks just made hand their images to the engine, which they do before they first wait."""
    await asyncio.sleep(0)
    assert engine.queue_depth == images


async def until_idle(engine: EngineClient) -> None:
    """Return when every slot is free."""
    changed, room_changed = asyncio.Event(), engine._room_changed

    def noting() -> None:
        room_changed()
        changed.set()

    engine._room_changed = noting  # type: ignore[method-assign]
    async with asyncio.timeout(PATIENCE_S):
        while engine.slots_in_use:
            changed.clear()
            await changed.wait()
    engine._room_changed = room_changed  # type: ignore[method-assign]


class Running(Protocol):
    """A way to run an engine: a context of a warmed-up one, stopped afterwards.

    Only runs move its clock, so that the same batches form every time; a test of deadlines or hanging takes the real
    one, and then does not ask which bucket was chosen.
    """

    def __call__(self, session: ScriptedSession, **options: Any) -> AbstractAsyncContextManager[EngineClient]: ...


def _options(session: ScriptedSession, options: dict[str, Any]) -> dict[str, Any]:
    """What an engine is made with; `buckets` are those of its graphs, which `graphs` may say in their place."""
    if "clock" not in options:
        options["clock"] = session.clock = session.clock or FakeClock()
    graphs = (model_graph(*options.pop("buckets", ())),)
    room = Room(options.pop("max_queued_images", 16))
    return {"graphs": graphs, "room": room} | options


@asynccontextmanager
async def running_in_thread(session: ScriptedSession, **options: Any) -> AsyncIterator[InProcessEngine]:
    """The engine as a thread beside the event loop."""
    options = _options(session, options)
    options = {"load": lambda _: session, "input_shape": session.input_shape} | options
    engine = InProcessEngine(**options)
    await engine.start()
    await engine.wait_ready()
    session.runs.clear()
    try:
        yield engine
    finally:
        session.let_go()
        await engine.stop()


@asynccontextmanager
async def running_in_process(session: ScriptedSession, **options: Any) -> AsyncIterator[RemoteEngine]:
    """The engine as its own process runs it, with a worker's links and memory; here both are in one process."""
    async with linked(session, **options) as served:
        await served.client.wait_ready()
        session.runs.clear()
        yield served.client


@dataclass
class Linked:
    """A worker's client, its memory, and an engine that it has a link to, which runs in a thread."""

    client: RemoteEngine
    board: Board
    geometry: Geometry
    memory: int
    control: ControlSocket
    """The supervisor's end of the engine's."""
    failures: list[BaseException]
    """What would have ended the engine's process."""


@asynccontextmanager
async def linked(
    session: ScriptedSession,
    *,
    load: Callable[[Graph], ScriptedSession] | None = None,
    engines: int = 1,
    hang_after_s: float = 60.0,
    **options: Any,
) -> AsyncIterator[Linked]:
    """Engine 0 as its own process runs it, linked to worker 0; `engines` says how many there may be in all."""
    options = _options(session, options)
    room = options.pop("room")
    geometry = Geometry(room.images, session.input_shape, options.pop("graphs"))
    board, descriptor = Board.create(workers=1, engines=engines)
    os.close(descriptor)
    memory = SharedSlots.create(geometry)
    client = RemoteEngine(
        SharedSlots(geometry, memory),
        board,
        worker=0,
        room=room,
        max_wait_s=options.pop("max_wait_s", 0.0),
        hang_after_s=hang_after_s,
        clock=options["clock"],
    )
    served = Linked(client, board, geometry, memory, ControlSocket.pair()[0], [])
    await client.start()
    try:
        async with engine_for(served, session, load=load, **options):
            yield served
    finally:
        os.close(memory)


@asynccontextmanager
async def engine_for(
    served: Linked,
    session: ScriptedSession,
    *,
    load: Callable[[Graph], ScriptedSession] | None = None,
    number: int = 0,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> AsyncIterator[Linked]:
    """Run an engine, link the worker to it, and end it; engine 0's control socket becomes `served.control`."""
    ours, theirs = ControlSocket.pair()
    row = served.board.engines[number]

    def make_engine(plan: None, board: int, **callbacks: Any) -> LinkedEngine:
        assert plan is None
        os.close(board)

        def end(cause: BaseException | None) -> None:
            if cause is not None:
                served.failures.append(cause)
            on_end(cause)

        on_end, on_loaded = callbacks.pop("on_end"), callbacks.pop("on_loaded")
        return LinkedEngine(
            load or (lambda _: session),
            row=row,
            geometry=served.geometry,
            contender=DeviceTurns(clock=clock).join(),
            clock=clock,
            on_loaded=lambda: on_loaded(()),
            on_end=end,
            **callbacks,
            **options,
        )

    engine = EngineProcess(make_engine, control=theirs, leave=lambda _: ours.send(End()))
    if number == 0:
        served.control = ours
    linked_to = replace(served, control=ours)

    def run() -> None:
        try:
            engine.run()
        finally:
            theirs.close()

    thread = threading.Thread(target=run, name="engine")
    load_engine(ours)
    served.client.attach(number, attach(ours, 0, served.memory))
    thread.start()
    try:
        yield linked_to
    finally:
        session.let_go()
        ours.send(Unload(SERIAL))
        await served.client.stop()
        await asyncio.to_thread(unloaded, ours)
        ours.send(End())
        await asyncio.to_thread(thread.join, PATIENCE_S)
        ours.close()
        assert not thread.is_alive()


SERIAL = 1
"""Of the one version that an engine process of a test serves."""


def load_engine(control: ControlSocket) -> None:
    """Have an engine process make its engine, as the supervisor does."""
    board = os.memfd_create("board")
    assert control.send(Load(SERIAL, None), [board])
    os.close(board)


def unloaded(control: ControlSocket) -> None:
    """Return when an engine process has let go of its engine, or has ended."""
    while (received := control.receive()) is not None and not isinstance(received[0], Unloaded):
        pass


def attach(control: ControlSocket, worker: int, memory: int) -> socket.socket:
    """Link an engine to a worker, as the supervisor does; returns the worker's end."""
    for_worker, for_engine = socket.socketpair()
    with for_engine:
        assert control.send(Attach(SERIAL, worker), [for_engine.fileno(), memory])
    return for_worker
