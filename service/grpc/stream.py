"""`ModelStreamInfer`: requests on one stream, answered in their order.

Several are worked on at a time, so that they fill batches as those of several callers do; no more are read while so
many wait. One that fails is answered with its error, and the stream goes on. Each is accounted for, and asks its key,
like a request of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from google.protobuf.message import DecodeError
from grpc.aio import EOF, ServicerContext

from service.access.keys import find_key
from service.calls.authorization import authorize
from service.calls.parts import Parts
from service.errors import NotReady, Unauthorized
from service.grpc.exchange import REQUEST_ID, Exchange, headers_of
from service.grpc.failures import Failure, failure_of
from service.grpc.inference import Inference
from service.grpc.messages import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from service.protocol.routes import GRPC_STREAM_INFER

IN_FLIGHT = 16
"""Requests of one stream that are worked on, or wait for those before them to be answered."""


class InferenceStreams:
    """The streams of one process."""

    def __init__(self, parts: Parts, inference: Inference) -> None:
        self._parts = parts
        self._inference = inference
        self._reading: set[asyncio.Task[None]] = set()
        self._is_ending = False

    def end(self) -> None:
        """Read nothing more of any stream; what was read is answered."""
        self._is_ending = True
        for reading in self._reading:
            reading.cancel()

    async def answer(self, _: object, rpc: ServicerContext) -> None:
        """Answer one stream."""
        request_id = headers_of(rpc).get(REQUEST_ID)
        if request_id is not None:
            rpc.set_trailing_metadata(((REQUEST_ID, request_id),))
        await self._check_key(rpc)
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        places = asyncio.Semaphore(IN_FLIGHT)
        reading = asyncio.create_task(self._read(rpc, answers, places))
        self._reading.add(reading)
        if self._is_ending:
            reading.cancel()
        try:
            async for answer in _in_order(answers, places):
                await rpc.write(answer.SerializeToString())
        finally:
            self._reading.discard(reading)
            reading.cancel()
            left = [task for task in _emptied(answers) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(reading, *left, return_exceptions=True)
        if self._is_ending:
            await _abort(rpc, failure_of(NotReady("The service ends: open the stream anew.")))

    async def _check_key(self, rpc: ServicerContext) -> None:
        """Let no stream begin without a key that is known, where there are any."""
        keys = self._parts.settings.api_keys
        if not keys:
            return
        try:
            find_key(keys, headers_of(rpc).get("authorization", ""))
        except Unauthorized as error:
            refused = error
        else:
            return

        async def refuse() -> bytes:
            raise refused

        end = await Exchange(self._parts, rpc, GRPC_STREAM_INFER, began_s=time.monotonic()).run(refuse)
        assert isinstance(end, Failure)
        await _abort(rpc, end)

    async def _read(
        self,
        rpc: ServicerContext,
        answers: asyncio.Queue[asyncio.Task[Any] | None],
        places: asyncio.Semaphore,
    ) -> None:
        """Begin to answer each request as it comes."""
        try:
            while True:
                await places.acquire()
                message = await rpc.read()
                if message is EOF:
                    return
                answers.put_nowait(asyncio.create_task(self._answer_one(rpc, message)))
        finally:
            answers.put_nowait(None)

    async def _answer_one(self, rpc: ServicerContext, message: bytes) -> Any:
        exchange = Exchange(self._parts, rpc, GRPC_STREAM_INFER, began_s=time.monotonic())
        context = exchange.context

        async def serve() -> Any:
            authorize(context, self._parts)
            return await self._inference.inferred(context, message)

        end = await exchange.run(serve)
        if isinstance(end, Failure):
            answer = ModelInferResponse(id=_id_of(message))
            return ModelStreamInferResponse(error_message=end.detail, infer_response=answer)
        return ModelStreamInferResponse(infer_response=end)


async def _in_order(answers: asyncio.Queue[asyncio.Task[Any] | None], places: asyncio.Semaphore) -> AsyncIterator[Any]:
    while (task := await answers.get()) is not None:
        try:
            yield await task
        finally:
            task.cancel()  # where the stream has ended and it has not
        places.release()


def _emptied(answers: asyncio.Queue[asyncio.Task[Any] | None]) -> Iterator[asyncio.Task[Any] | None]:
    while not answers.empty():
        yield answers.get_nowait()


async def _abort(rpc: ServicerContext, failure: Failure) -> None:
    await rpc.abort(failure.status, failure.detail, (*(rpc.trailing_metadata() or ()), *failure.metadata()))


def _id_of(message: bytes) -> str:
    """Return the id of a request that failed; nothing where not even that could be read."""
    try:
        request_id: str = ModelInferRequest.FromString(message).id
    except DecodeError:
        return ""
    return request_id
