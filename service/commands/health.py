"""`health`: ask the service that these settings describe whether it is ready; for a container's health check.

It asks this machine's own server and sends nothing that is secret, so the server's certificate is taken as it is: it
names the host that clients know, and seldom the loopback address. Nothing beyond the standard library speaks, since
it runs every few seconds beside the server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import sys

from service.commands.options import settings_from
from service.errors import SettingsError
from service.settings import Settings, add_options, option_of

_PATH = "/health/ready"
TIMEOUT_S = 4.0
"""Shorter than the image's HEALTHCHECK gives it, so that a server which hangs is named rather than cut off."""
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where one asks, not listens
"""Addresses that stand for all of a machine's, and where its own programs reach what listens on them."""
_OPTIONS = ("settings", "host", "port", "tls_certificate", "tls_key", "tls_key_password", "tls_ca_certificates")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings that say where and how the service listens."""
    add_options(parser, only=_OPTIONS)


def run(options: argparse.Namespace) -> int:
    """Say whether the service would answer, and return 0 if so, else 1; raises SettingsError where one is wrong."""
    settings = settings_from(options)
    if settings.port == 0:
        raise SettingsError(f"{option_of('port')}: 0 takes a free port, which only the service itself knows")
    host = _LOOPBACK.get(settings.host, settings.host)
    scheme = "http" if settings.tls_certificate is None else "https"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"
    connection = _connection(settings, host)
    try:
        connection.request("GET", _PATH)
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        return _not_ready(url, _reason(error))
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        return _not_ready(url, _detail(status, body))
    print(f"{url} is ready.")
    return 0


def _connection(settings: Settings, host: str) -> http.client.HTTPConnection:
    """Return a connection yet to be made; it shows the server's own certificate where clients must have one."""
    if settings.tls_certificate is None:
        return http.client.HTTPConnection(host, settings.port, timeout=TIMEOUT_S)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if settings.tls_ca_certificates is not None:
        password = settings.tls_key_password
        try:
            context.load_cert_chain(
                settings.tls_certificate, settings.tls_key, lambda: password.get_secret_value() if password else ""
            )
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{option_of('tls_certificate')}: {settings.tls_certificate} cannot be used: {error}"
            ) from error
    return http.client.HTTPSConnection(host, settings.port, timeout=TIMEOUT_S, context=context)


def _not_ready(url: str, reason: str) -> int:
    print(f"{url} is not ready: {reason}", file=sys.stderr)
    return 1


def _reason(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s."
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error})."
    if isinstance(error, OSError):
        return f"{error.strerror or error}."
    return f"what answers speaks no HTTP ({error!r})."


def _detail(status: int, body: bytes) -> str:
    """Return what the answer says of itself: a problem document's detail, if it is one."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return detail if isinstance(detail, str) else f"the answer's status is {status}."
