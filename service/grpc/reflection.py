"""`grpc.reflection.v1.ServerReflection`, and the same under its older name: what this server offers, without a key.

It is what is in `proto/`, and nothing of any model or setting.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc.aio import EOF, ServicerContext

from service.grpc.messages import (
    HEALTH_SERVICE,
    INFERENCE_SERVICE,
    POOL,
    REFLECTION_SERVICE,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

SERVICES = (HEALTH_SERVICE, REFLECTION_SERVICE, INFERENCE_SERVICE)
_ANSWERED = ("list_services", "file_by_filename", "file_containing_symbol")
_OLDER_NAME = "grpc.reflection.v1alpha.ServerReflection"


def handlers() -> list[grpc.GenericRpcHandler]:
    """Return what gRPC needs of the service, under both names."""
    methods = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(_reflect)}
    return [grpc.method_handlers_generic_handler(name, methods) for name in (REFLECTION_SERVICE, _OLDER_NAME)]


async def _reflect(_: object, rpc: ServicerContext) -> None:
    while (message := await rpc.read()) is not EOF:
        try:
            request = ServerReflectionRequest.FromString(message)
        except DecodeError:
            await rpc.abort(StatusCode.INVALID_ARGUMENT, "The message is no ServerReflectionRequest.")
        await rpc.write(_answer(request).SerializeToString())


def _answer(request: Any) -> Any:
    response = ServerReflectionResponse(valid_host=request.host, original_request=request)
    asked = request.WhichOneof("message_request")
    try:
        if asked == "list_services":
            for name in SERVICES:
                response.list_services_response.service.add(name=name)
        elif asked == "file_by_filename":
            _add(response, POOL.FindFileByName(request.file_by_filename))
        elif asked == "file_containing_symbol":
            _add(response, POOL.FindFileContainingSymbol(request.file_containing_symbol))
    except KeyError:
        asked = None
    if asked not in _ANSWERED:
        response.error_response.error_code = StatusCode.NOT_FOUND.value[0]
        response.error_response.error_message = "There is no such thing here."
    return response


def _add(response: Any, file: Any) -> None:
    """Add a file, with those that it needs before it."""
    for needed in file.dependencies:
        _add(response, needed)
    files = response.file_descriptor_response.file_descriptor_proto
    if file.serialized_pb not in files:
        files.append(file.serialized_pb)
