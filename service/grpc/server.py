"""gRPC's server of one process, on the port that all processes of the service share.

It lives beside the HTTP server, on the same event loop and over the same parts, and ends with it: when that stops
accepting, this does, and what is in flight has the same time.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc import aio

from service.calls.parts import Parts
from service.errors import StartupError
from service.grpc import reflection
from service.grpc.health import Health
from service.grpc.inference import Inference
from service.grpc.stream import InferenceStreams
from service.settings import Settings

MAX_STREAMS = 256
"""Calls at a time on one connection; each may hold a message."""
_log = logging.getLogger(__name__)


class GrpcServer:
    """Serves at `address`, which the process's parent, or the process itself, has reserved."""

    def __init__(self, parts: Parts, address: str) -> None:
        self._parts = parts
        self._address = address
        self._server: aio.Server | None = None
        self._health = Health(parts)
        inference = Inference(parts)
        self._streams = InferenceStreams(parts, inference)
        self._handlers = [inference.handlers(self._streams.answer), self._health.handlers(), *reflection.handlers()]

    async def start(self) -> None:
        """Listen and accept; raises StartupError where the port cannot be had."""
        self._server = aio.server(options=_options(self._parts.settings))
        self._server.add_generic_rpc_handlers(tuple(self._handlers))
        credentials = _credentials(self._parts.settings)
        try:
            if credentials is None:
                self._server.add_insecure_port(self._address)
            else:
                self._server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            raise StartupError(f"cannot listen for gRPC on {self._address}: {error}") from error
        await self._server.start()

    async def end(self, within_s: float) -> None:
        """Stop accepting, wait for what is in flight, and cancel what is left of it after a time."""
        if self._server is None:
            return
        self._health.end()
        self._streams.end()
        server, self._server = self._server, None
        await server.stop(within_s)
        # gRPC's own thread ends with its last object, and calls that were in flight leave circles of them.
        del server
        gc.collect()


def _options(settings: Settings) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_connection_idle_ms", settings.keep_alive_timeout_ms),
    )


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return what connections are encrypted with, of the same files as for HTTP, which has looked at them."""
    certificate = settings.tls_certificate
    if certificate is None:
        return None
    key = settings.tls_key or certificate
    authorities = None if settings.tls_ca_certificates is None else _bytes(settings.tls_ca_certificates)
    return grpc.ssl_server_credentials(
        [(_bytes(key), _bytes(certificate))],
        root_certificates=authorities,
        require_client_auth=authorities is not None,
    )


def _bytes(path: Path) -> bytes:
    return path.read_bytes()
