"""`inference.GRPCInferenceService`: the Open Inference Protocol, method by method."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from service.calls.authorization import authorized_control
from service.calls.context import RequestContext
from service.calls.large import THREAD_FROM_BYTES, in_thread_if_large
from service.calls.parts import Parts
from service.errors import NotReady, UnknownModel
from service.grpc.coding import as_message, call_of, parameters_of, response_of
from service.grpc.exchange import parsed, single
from service.grpc.messages import INFERENCE_SERVICE, ModelInferRequest, of_protocol
from service.protocol import metadata, repository
from service.protocol.answers import infer_call, size_bytes
from service.protocol.call import Call, Taken
from service.protocol.routes import GRPC_INFER
from service.protocol.statistics import statistics
from service.serving.served import Served

_RAW_THREAD_FROM_BYTES = 1024 * 1024
"""A message whose values are raw is copied, which is not long; other values are looked at one by one."""

Method = Callable[[RequestContext, Any], Awaitable[Any]]


class Inference:
    """The service's methods over one process's parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def handlers(self, stream: Any) -> grpc.GenericRpcHandler:
        """Return what gRPC needs of the service; `stream` answers ModelStreamInfer."""
        probes = {"ServerLive": self._live, "ServerReady": self._ready, "ModelReady": self._model_ready}
        others = {
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        methods = {
            name: _handler(single(self._parts, _route(name), _of_messages(name, method), key_wanted=name not in probes))
            for name, method in {**probes, **others}.items()
        }
        methods["ModelInfer"] = _handler(single(self._parts, GRPC_INFER, self.infer, key_wanted=True, runs_model=True))
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
        return grpc.method_handlers_generic_handler(INFERENCE_SERVICE, methods)

    async def infer(self, context: RequestContext, message: bytes) -> bytes:
        """Return the ModelInferResponse to a ModelInferRequest."""
        response = await self.inferred(context, message)
        encoded: bytes = response.SerializeToString()
        return encoded

    async def inferred(self, context: RequestContext, message: bytes) -> Any:
        """Answer a ModelInferRequest, as a message."""
        served, call = await self._understood(context, message)
        outputs = await infer_call(context, self._parts, served, call)

        def respond() -> Any:
            began_s = time.monotonic()
            response = response_of(call, outputs, served.model)
            context.stages.postprocessed(began_s)
            return response

        return await in_thread_if_large(size_bytes(outputs), respond)

    async def _understood(self, context: RequestContext, message: bytes) -> tuple[Served, Call]:
        """Return what a message asks, and of whom; in a thread where that is work."""
        if len(message) < _RAW_THREAD_FROM_BYTES:
            request = parsed(ModelInferRequest, message)
        else:
            request = await asyncio.to_thread(parsed, ModelInferRequest, message)
        served = self._resolve(context, request.model_name, request.model_version)
        taken = Taken.by(served)
        if request.raw_input_contents or len(message) < THREAD_FROM_BYTES:
            return served, call_of(request, taken)
        return served, await asyncio.to_thread(call_of, request, taken)

    def _resolve(self, context: RequestContext, name: str, version: str) -> Served:
        return self._parts.resolve(context, name or None, version or None)

    async def _live(self, _: RequestContext, __: Any) -> Any:
        return of_protocol("ServerLiveResponse")(live=True)

    async def _ready(self, _: RequestContext, __: Any) -> Any:
        ready = False
        with contextlib.suppress(NotReady):
            self._parts.check_ready()
            ready = True
        return of_protocol("ServerReadyResponse")(ready=ready)

    async def _model_ready(self, _: RequestContext, request: Any) -> Any:
        """Say of a model that is not there, as Triton does, that it is not ready."""
        ready = False
        with contextlib.suppress(NotReady, UnknownModel):
            self._parts.check_model_ready(request.name, request.version or None)
            ready = True
        return of_protocol("ModelReadyResponse")(ready=ready)

    async def _server_metadata(self, _: RequestContext, __: Any) -> Any:
        return as_message("ServerMetadataResponse", metadata.server_metadata().model_dump())

    async def _model_metadata(self, context: RequestContext, request: Any) -> Any:
        served = self._resolve(context, request.name, request.version)
        described = metadata.model_metadata(self._parts, served, context.headers)
        return as_message("ModelMetadataResponse", described.model_dump())

    async def _model_config(self, context: RequestContext, request: Any) -> Any:
        served = self._resolve(context, request.name, request.version)
        config = metadata.model_configuration(self._parts, served, context.headers)
        return as_message("ModelConfigResponse", {"config": config})

    async def _model_statistics(self, context: RequestContext, request: Any) -> Any:
        models = self._parts.models.served
        if request.name:
            served = self._resolve(context, request.name, request.version)
            models = [served] if request.version else [each for each in models if each.name == served.name]
        return as_message("ModelStatisticsResponse", (await statistics(self._parts, models)).model_dump())

    async def _index(self, _: RequestContext, request: Any) -> Any:
        entries = repository.index(self._parts, ready=request.ready)
        return as_message("RepositoryIndexResponse", {"models": [entry.model_dump() for entry in entries]})

    async def _load(self, context: RequestContext, request: Any) -> Any:
        control = authorized_control(context, self._parts)
        repository.check_load(parameters_of(request))
        await control.load(request.model_name)
        return of_protocol("RepositoryModelLoadResponse")()

    async def _unload(self, context: RequestContext, request: Any) -> Any:
        control = authorized_control(context, self._parts)
        repository.check_unload(parameters_of(request))
        await control.unload(request.model_name)
        return of_protocol("RepositoryModelUnloadResponse")()


def _route(name: str) -> str:
    return f"/{INFERENCE_SERVICE}/{name}"


def _handler(call: Any) -> Any:
    return grpc.stream_unary_rpc_method_handler(call)


def _of_messages(name: str, method: Method) -> Callable[[RequestContext, bytes], Awaitable[bytes]]:
    kind = of_protocol(f"{name}Request")

    async def serve(context: RequestContext, message: bytes) -> bytes:
        answer: bytes = (await method(context, parsed(kind, message))).SerializeToString()
        return answer

    return serve
