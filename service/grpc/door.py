"""The door to gRPC: whether it is there, which port it has, and how a process gets its server of it.

Knows nothing of gRPC itself: its packages are an optional extra, and are imported only in processes that serve, and
only where the setting asks for them.
"""

from __future__ import annotations

import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING

from service.calls.parts import Parts
from service.errors import SettingsError, StartupError
from service.settings import Settings, option_of

if TYPE_CHECKING:
    from service.grpc.server import GrpcServer

_PACKAGES = ("grpc", "google.protobuf")


class ReservedPort:
    """A port that nobody else can take while this is there, and several processes of the service can listen on.

    Two services must not share one by mistake, and each get some of the calls: so nobody may have it before.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            family, _, _, _, place = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
            )[0]
            alone = socket.socket(family, socket.SOCK_STREAM)
            try:
                # Connections of a predecessor that has just ended are in nobody's way; one that listens still is.
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(place)
                place = alone.getsockname()
            finally:
                alone.close()
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind(place)
        except OSError as error:
            raise StartupError(f"cannot listen for gRPC on {host} port {port}: {error.strerror or error}") from error
        address, number = place[0], place[1]
        self.address = f"[{address}]:{number}" if family == socket.AF_INET6 else f"{address}:{number}"
        """As gRPC has it."""


def reserve_port(settings: Settings) -> ReservedPort | None:
    """Return the port of gRPC, None where it is off.

    Raises SettingsError where its packages are absent or the settings are nothing for it, and StartupError where the
    port cannot be had.
    """
    if settings.grpc_port is None:
        return None
    option = option_of("grpc_port")
    for package in _PACKAGES:
        if not _is_there(package):
            raise SettingsError(f"{option}: {package} is not installed; requirements/grpc.txt has what gRPC needs")
    if settings.tls_key_password is not None:
        raise SettingsError(f"{option}: gRPC takes no private key with a password, {option_of('tls_key_password')}")
    if settings.grpc_port == settings.port != 0:
        raise SettingsError(f"{option}: HTTP has port {settings.port} already")
    return ReservedPort(settings.host, settings.grpc_port)


def grpc_server(parts: Parts, address: str | None) -> GrpcServer | None:
    """Return this process's server at the reserved address, None where there is none."""
    if address is None:
        return None
    from service.grpc.server import GrpcServer

    return GrpcServer(parts, address)


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
