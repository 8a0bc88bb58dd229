"""A contender in a process of its own: one that breaks, hangs or leaves memory behind ends alone.

A GPU's context lasts as long as its process, and an illegal access ends all work in it. So whoever compares many graphs
in little time runs each in a process, asks them in turn, and loses one where one is lost.

Invariant: one question at a time; after `ContenderLost` the process is gone.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Turn, take_turn
from models.variants import VARIANTS

if TYPE_CHECKING:
    from benchmarks.contenders import Contender
    from service.engine.types import Pixels

_END_TIMEOUT_S = 10.0


class ContenderLost(Exception):
    """A contender that did not begin, broke, or did not answer in time; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a process makes: the contender `name` of `benchmarks.contenders`, with weights by `seed`."""

    name: str
    variant: str
    seed: int
    device: str
    batches: Sequence[int]
    graph: Path | None = None
    """The file that `ort-<name>` runs; None for those of torch."""
    exact: bool = False
    operators: Path | None = None
    standard: Path | None = None
    """As those of `benchmarks.contenders.Graph`."""


def images_of(variant: str, count: int) -> Pixels:
    """Return the images that every process has: uint8 (count, height, width, 3), the first ones the same."""
    side = VARIANTS[variant].input_size
    return np.stack(
        [np.random.default_rng(index).integers(0, 256, (side, side, 3), np.uint8) for index in range(count)]
    )


class ContenderProcess:
    """One contender; it begins to be made at once."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        context = multiprocessing.get_context("spawn")
        self._questions, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(spec, theirs), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return self._process.pid

    def wait_ready(self, timeout_s: float) -> None:
        """Return as soon as it has run each batch size; raises ContenderLost."""
        self._receive(timeout_s)

    def logits(self, batch: int, timeout_s: float) -> NDArray[np.float32]:
        """Return what it gives for the first `batch` images, float32 (batch, classes); raises ContenderLost."""
        given: NDArray[np.float32] = self._ask(("logits", batch), timeout_s)
        return given

    def turn(self, batch: int, min_s: float, timeout_s: float) -> Turn:
        """Have it run for at least `min_s`, and return the time of one run; raises ContenderLost."""
        turn: Turn = self._ask(("turn", batch, min_s), timeout_s)
        return turn

    def close(self) -> None:
        """End the process, by force where it does not end."""
        self._questions.close()
        self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, question: tuple[Any, ...], timeout_s: float) -> Any:
        try:
            self._questions.send(question)
        except OSError as error:
            raise self._lost("its process has ended") from error
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._questions.poll(max(0.0, timeout_s)):
                raise self._lost(f"no answer in {timeout_s:.0f} s")
            failure, answer = self._questions.recv()
        except (EOFError, ConnectionError) as error:
            raise self._lost("its process has ended") from error
        if failure is not None:
            raise self._lost(failure)
        return answer

    def _lost(self, why: str) -> ContenderLost:
        self._process.kill()
        self._process.join()
        exit_status = self._process.exitcode
        self._questions.close()
        return ContenderLost(f"{self.spec.name}: {why} (exit status {exit_status})")


def _answer(spec: Spec, questions: Connection) -> None:
    """Make the contender, say so, and answer until nobody asks; what fails is told, and ends the process."""
    try:
        contender = _made(spec)
        images = images_of(spec.variant, max(spec.batches))
        for batch in spec.batches:  # torch.compile compiles at the first run of each size
            contender.run(np.ascontiguousarray(images[:batch]))
        questions.send((None, None))
        while True:
            questions.send((None, _told(contender, images, *questions.recv())))
    except EOFError:
        return
    except Exception:  # the runtimes' errors have no base of their own
        questions.send((traceback.format_exc(limit=-3), None))


def _told(contender: Contender, images: Pixels, what: str, batch: int, min_s: float = 0.0) -> Any:
    pixels = np.ascontiguousarray(images[:batch])
    return contender.run(pixels) if what == "logits" else take_turn(lambda: contender.run(pixels), min_s=min_s)


def _made(spec: Spec) -> Contender:
    from benchmarks.contenders import Graph, available, make_subject

    subject = make_subject(spec.variant, seed=spec.seed, device=spec.device, batches=spec.batches)
    if spec.graph is not None:
        graph = Graph(spec.graph, exact=spec.exact, operators=spec.operators, standard=spec.standard)
        subject.graphs[spec.name.removeprefix("ort-")] = graph
    return available(subject)[spec.name]()
