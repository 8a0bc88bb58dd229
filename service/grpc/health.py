"""`grpc.health.v1.Health`: the server's readiness, as probes and balancers ask for it, without a key."""

from __future__ import annotations

import asyncio

import grpc
from grpc.aio import EOF, ServicerContext

from service.calls.context import RequestContext
from service.calls.parts import Parts
from service.errors import MalformedRequest, NotReady, UnknownModel
from service.grpc.exchange import parsed, single
from service.grpc.failures import failure_of
from service.grpc.messages import (
    HEALTH_SERVICE,
    INFERENCE_SERVICE,
    HealthCheckRequest,
    HealthCheckResponse,
)

LOOK_S = 1.0
"""How often a watched server's readiness is looked at."""
_KNOWN = ("", INFERENCE_SERVICE)


class Health:
    """The service's methods over one process's parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Tell all who watch that the server ends."""
        self._ending.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return what gRPC needs of the service."""
        check = single(self._parts, f"/{HEALTH_SERVICE}/Check", self._check, key_wanted=False)
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, methods)

    async def _check(self, _: RequestContext, message: bytes) -> bytes:
        service = parsed(HealthCheckRequest, message).service
        if service not in _KNOWN:
            raise UnknownModel(f"There is no service {service!r} here.")
        return self._encoded(service)

    async def _watch(self, _: object, rpc: ServicerContext) -> None:
        """Send the state now, and whenever it has changed."""
        message = await rpc.read()
        try:
            service = parsed(HealthCheckRequest, b"" if message is EOF else message).service
        except MalformedRequest as error:
            failure = failure_of(error)
            await rpc.abort(failure.status, failure.detail, tuple(failure.metadata()))
        sent = b""
        while True:
            state = self._encoded(service)
            if state != sent:
                await rpc.write(state)
                sent = state
            if self._ending.is_set():
                return
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._ending.wait()
            except TimeoutError:
                continue

    def _encoded(self, service: str) -> bytes:
        encoded: bytes = HealthCheckResponse(status=self._state(service)).SerializeToString()
        return encoded

    def _state(self, service: str) -> str:
        if service not in _KNOWN:
            return "SERVICE_UNKNOWN"
        if self._ending.is_set():
            return "NOT_SERVING"
        try:
            self._parts.check_ready()
        except NotReady:
            return "NOT_SERVING"
        return "SERVING"
