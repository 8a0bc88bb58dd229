"""A model in this process, by the same decoding, batching and runtime that the server has, without HTTP.

Images are decoded side by side in threads while the engine runs the batch before them; the engine takes whatever is
ready, so that as many images under way as fill a few batches keep it busy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from service.engine.in_process import InProcessEngine
from service.engine.reservation import Reservation
from service.engine.room import Room
from service.engine.runtime.session import resolve_device
from service.engine.types import Outputs, Pixels, Priority
from service.errors import InferenceFailed, ServiceError, SettingsError
from service.images.limits import UnusableImage
from service.images.pool import DecodePool
from service.images.preprocessing import Preprocessing, decode_into, prepare_pillow
from service.model.directory import ModelDirectory
from service.model.loading import SessionLoader, in_process_engine, preprocessing_of
from service.model.postprocess import BEST, Choice, softmax
from service.model.selection import only_model
from service.predictors.types import Fault, PredictorFailed, PredictorModel, Ranking, ScoresByBoth, ranked
from service.settings import Settings

T = TypeVar("T")
_BATCHES_UNDER_WAY = 4
"""One that runs, one that waits for the device, and two that are being read and decoded."""


class InProcessPredictor:
    """Answers with an engine that has been started; see `open_predictor`."""

    def __init__(
        self, model: ModelDirectory, engine: InProcessEngine, *, settings: Settings, concurrency: int, pool: DecodePool
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._top_k = settings.top_k
        self._concurrency = concurrency
        self._room = asyncio.Semaphore(concurrency)
        self._preprocessing = preprocessing_of(model.manifest, settings)
        self._model = PredictorModel(
            model.manifest.name,
            model.manifest.version,
            model.labels,
            model.manifest.shapes,
            model.manifest.class_output,
            precision=model.manifest.precision,
            created=model.manifest.created,
            weights_sha256=model.manifest.weights_sha256,
            resize=settings.resize,
            temperature=model.manifest.temperature,
        )

    @property
    def model(self) -> PredictorModel:
        """The model that answers."""
        return self._model

    @property
    def concurrency(self) -> int:
        """How many images should be under way; more than that wait for room."""
        return self._concurrency

    async def confirm(self) -> None:
        """See `Predictor`; a model that is loaded stays as it is."""

    async def classify(self, image: bytes, choice: Choice = BEST) -> Ranking | Fault:
        """Return the most likely classes of one image; see `Predictor`."""
        outputs = await self.features(image, (self._model.class_output,))
        if isinstance(outputs, Fault):
            return outputs
        try:
            return ranked(outputs, self._model, choice.or_top_k(self._top_k))
        except InferenceFailed as error:
            return Fault(error.code, str(error))

    async def features(self, image: bytes, outputs: Sequence[str]) -> Outputs | Fault:
        """Return outputs for one image; see `Predictor`."""
        return await self._answered(partial(self._infer, image, outputs))

    async def scores_by_both_resizes(self, image: bytes) -> ScoresByBoth | Fault:
        """Return the scores of one image's classes, resized as `--resize exact` does and as `fast` does."""
        return await self._answered(partial(self._infer_both, image))

    async def _answered(self, infer: Callable[[], Awaitable[T]]) -> T | Fault:
        """Infer where there is room; what is wrong with one image is its fault."""
        try:
            async with self._room:
                return await infer()
        except UnusableImage as error:
            return error.fault
        except InferenceFailed as error:
            return Fault(error.code, str(error))
        except ServiceError as error:
            raise PredictorFailed(self._engine.failure or str(error)) from error

    async def _infer(self, image: bytes, outputs: Sequence[str]) -> Outputs:
        with self._engine.reserve(1, priority=Priority.BULK) as reservation:
            await self._pool.run(Priority.BULK, self._decode, image, reservation)
            (answer,) = await reservation.infer([0], frozenset(outputs))
        return answer.outputs

    async def _infer_both(self, image: bytes) -> ScoresByBoth:
        """Infer one after the other: more images under way keep the engine busy, and each has one place."""
        name = self._model.class_output
        outputs = frozenset({name})
        preprocessing = replace(self._preprocessing, fast=False)
        with self._engine.reserve(1, priority=Priority.BULK) as reservation:
            exact = await self._pool.run(Priority.BULK, self._decode_and_copy, image, reservation, preprocessing)
            (answer,) = await reservation.infer([0], outputs)
        preprocessing = replace(self._preprocessing, fast=True)
        with self._engine.reserve(1, priority=Priority.BULK) as reservation:
            fast = await self._pool.run(Priority.BULK, self._decode_and_copy, image, reservation, preprocessing)
            same = np.array_equal(exact, fast)
            if not same:
                (other,) = await reservation.infer([0], outputs)
        scores = partial(softmax, temperature=self._model.temperature)
        return ScoresByBoth(scores(answer.outputs[name]), None if same else scores(other.outputs[name]))

    def _decode_and_copy(self, image: bytes, reservation: Reservation, preprocessing: Preprocessing) -> Pixels:
        with reservation.writing(0) as pixels:
            decode_into(image, pixels, preprocessing)
            return pixels.copy()

    def _decode(self, image: bytes, reservation: Reservation) -> None:
        with reservation.writing(0) as pixels:
            decode_into(image, pixels, self._preprocessing)


@asynccontextmanager
async def open_predictor(settings: Settings, *, concurrency: int | None = None) -> AsyncIterator[InProcessPredictor]:
    """Load and warm the one model that the settings name, and give a predictor of it.

    `concurrency` is how many images are taken on at a time, enough to keep the device busy if left out. Raises
    StartupError where the model cannot be loaded as asked.
    """
    model, settings = only_model(settings)
    if settings.devices:
        raise SettingsError("one process runs on one device: give `device`, not `devices`, or ask a server")
    prepare_pillow()
    device = resolve_device(settings.device)
    largest_batch = max(settings.buckets_for(device))
    under_way = concurrency or _BATCHES_UNDER_WAY * largest_batch + settings.decode_thread_count
    used = {
        "explain": False,  # nobody asks for it here
        "max_wait_ms": 0,
    }
    # An image that was given up keeps its slot while a thread or a batch is still at it.
    room = Room(under_way + settings.decode_thread_count + largest_batch)
    settings = settings.model_copy(update=used)
    load = SessionLoader(model, device=device, settings=settings)
    engine = in_process_engine(settings, model, device=device, load=load, room=room)
    pool = DecodePool(settings.decode_thread_count)
    await engine.start()
    try:
        await engine.wait_ready()
        yield InProcessPredictor(model, engine, settings=settings, concurrency=under_way, pool=pool)
    finally:
        await engine.stop()
        pool.shutdown()
