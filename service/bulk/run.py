"""A run: the parts that are not done yet, each image through the predictor, each part into its file.

Images of a part follow those of the part before without a pause, so that the device does not idle at the borders.
What is held at a time: as many images as the predictor wants under way, a few that were read ahead, and the rows of
one row group.
"""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import pyarrow as pa
from PIL import Image

from service.bulk.inputs import Item
from service.bulk.journal import Journal
from service.bulk.parts import Part
from service.bulk.writing import Answer, Counts, PartWriter
from service.errors import InferenceFailed
from service.images.files import read_image
from service.images.names import LeftOut
from service.model.postprocess import Choice
from service.predictors.ordered import in_order
from service.predictors.types import Fault, Predictor, PredictorFailed, PredictorModel, ranked

_READ_AHEAD_IMAGES = 16
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every image."""

    outputs: tuple[str, ...]
    choice: Choice
    max_bytes: int
    """Larger images are not read."""


class Workplace(Protocol):
    """Where parts are done."""

    @property
    def model(self) -> PredictorModel:
        """The model that answers."""
        ...

    async def shapes(self, outputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each output for one image."""
        ...

    def run(
        self, parts: Sequence[Part], question: Question, schema: pa.Schema, *, advance: Callable[[int], None]
    ) -> AsyncGenerator[tuple[Part, Counts], None]:
        """Do the parts, and yield each when its file is in place; `advance` is told of images that are done.

        Raises StartupError where no more can be done. Close it where it may not be read to its end.
        """
        ...


class LocalWorkplace:
    """This process, with the predictor that it has opened."""

    def __init__(self, predictor: Predictor, journal: Journal) -> None:
        self._predictor = predictor
        self._journal = journal

    @property
    def model(self) -> PredictorModel:
        """The model that answers."""
        return self._predictor.model

    async def shapes(self, outputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each output for one image."""
        return await output_shapes(self._predictor, outputs)

    def run(
        self, parts: Sequence[Part], question: Question, schema: pa.Schema, *, advance: Callable[[int], None]
    ) -> AsyncGenerator[tuple[Part, Counts], None]:
        """Do the parts in order; see `Workplace`."""
        return run_parts(parts, question, self._predictor, journal=self._journal, schema=schema, advance=advance)


@dataclass(frozen=True, slots=True)
class _End:
    """Follows the last image of a part."""

    part: Part
    left_out: LeftOut


async def run_parts(
    parts: Sequence[Part],
    question: Question,
    predictor: Predictor,
    *,
    journal: Journal,
    schema: pa.Schema,
    advance: Callable[[int], None] = lambda _: None,
) -> AsyncGenerator[tuple[Part, Counts], None]:
    """Do the parts in order, and yield each when its file is in place; close it where it may not be read to its end.

    `advance` is told of every image. Raises what the predictor does, and InputError.
    """

    async def answer(entry: Item | _End) -> Answer | Fault | None:
        return None if isinstance(entry, _End) else await _answer(entry, question, predictor)

    stream = in_order(_stream(parts, question.max_bytes), answer, concurrency=predictor.concurrency)
    async with aclosing(stream) as answers:
        for part in parts:
            with ExitStack() as opened:
                path = opened.enter_context(journal.whole_file(journal.part_file(part.number)))
                writer = opened.enter_context(PartWriter(path, schema))
                async for entry, result in answers:
                    if isinstance(entry, _End) or result is None:
                        assert isinstance(entry, _End)  # images have results
                        writer.left_out = entry.left_out
                        break
                    if writer.add(entry, result):
                        await _in_thread(writer.write)
                    advance(1)
                else:
                    raise RuntimeError(f"part {part.number} has no end")
                await predictor.confirm()
                counts = await _in_thread(partial(_finish, writer, opened.pop_all()))
            yield part, counts


async def output_shapes(predictor: Predictor, outputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output for one image: as the model is described or, where that is open, by asking it."""
    described = {name: predictor.model.outputs[name] for name in outputs}
    known = {name: tuple(side for side in shape if side is not None) for name, shape in described.items()}
    if all(len(known[name]) == len(shape) for name, shape in described.items()):
        return known
    probe = io.BytesIO()
    Image.new("RGB", (1, 1)).save(probe, "PNG")
    answer = await predictor.features(probe.getvalue(), outputs)
    if isinstance(answer, Fault):
        raise PredictorFailed(f"the model did not answer for a black image: {answer.detail}")
    return {name: answer[name].shape for name in outputs}


def _finish(writer: PartWriter, opened: ExitStack) -> Counts:
    """End a part's file, and put it in place."""
    with opened:
        return writer.close()


async def _in_thread(work: Callable[[], R]) -> R:
    """Do work in a thread, and end no sooner than it has ended, for another may not touch the file before."""
    ended = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(ended)
    finally:
        await asyncio.wait([ended])


async def _answer(item: Item, question: Question, predictor: Predictor) -> Answer | Fault:
    data = item.data
    if data is None:
        data = await asyncio.to_thread(read_image, item.source, question.max_bytes)
    if isinstance(data, Fault):
        return data
    outputs = await predictor.features(data, tuple(dict.fromkeys((predictor.model.class_output, *question.outputs))))
    if isinstance(outputs, Fault):
        return outputs
    try:
        return Answer(ranked(outputs, predictor.model, question.choice), outputs)
    except InferenceFailed as error:
        return Fault(error.code, str(error))


async def _stream(parts: Iterable[Part], max_bytes: int) -> AsyncIterator[Item | _End]:
    """Yield the images of all parts, each part's followed by its end; shards are read in a thread, a little ahead."""
    entries = _entries(parts, max_bytes)
    while chunk := await asyncio.to_thread(_next, entries):
        for entry in chunk:
            yield entry


def _entries(parts: Iterable[Part], max_bytes: int) -> Iterator[Item | _End]:
    for part in parts:
        left_out = LeftOut()
        yield from part.items(max_bytes, left_out)
        yield _End(part, left_out)


def _next(entries: Iterator[Item | _End]) -> list[Item | _End]:
    return list(itertools.islice(entries, _READ_AHEAD_IMAGES))
