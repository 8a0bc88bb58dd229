"""What a cloud's platform says of how it will ask: the port and the paths, in variables of its own.

SageMaker asks on port 8080, or the one in SAGEMAKER_BIND_TO_PORT, always at the same paths; Vertex AI sets its port and
paths in AIP_HTTP_PORT, AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from service.errors import SettingsError

SAGEMAKER, VERTEX = "sagemaker", "vertex"
_PORTS = {SAGEMAKER: "SAGEMAKER_BIND_TO_PORT", VERTEX: "AIP_HTTP_PORT"}
_PORT = "8080"
_HEALTH_ROUTE, _PREDICT_ROUTE = "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"
_ROUTE = re.compile(r"(/[A-Za-z0-9._~:@-]+)+")
_VERTEX_OWN = "/v1/endpoints/"
PROBES = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""Paths that the service answers as a health check wants."""


@dataclass(frozen=True, slots=True)
class VertexRoutes:
    """The paths at which Vertex AI asks."""

    health: str
    predict: str


def platform_values(cloud: object, environment: Mapping[str, str], *, own_places: Collection[str]) -> dict[str, Any]:
    """Return the settings that a platform decides, by their names; none where there is no platform of that name.

    `own_places` is what the service's own paths begin with. Raises SettingsError that names a variable of the
    platform's that is out of its domain.
    """
    if cloud not in _PORTS:
        return {}
    variable = _PORTS[str(cloud)]
    port = environment.get(variable) or _PORT
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65_536):
        raise SettingsError(f"{variable}: a TCP port is wanted (given {port!r})")
    if cloud == VERTEX:
        _check(vertex_routes(environment), own_places)
    return {"host": "0.0.0.0", "port": int(port)}  # noqa: S104 - the platform asks from outside of the container


def vertex_routes(environment: Mapping[str, str]) -> VertexRoutes:
    """Return the paths at which Vertex AI asks; raises SettingsError where they are none."""
    return VertexRoutes(
        health=_path(environment, _HEALTH_ROUTE, "/health"), predict=_path(environment, _PREDICT_ROUTE, "/predict")
    )


def _path(environment: Mapping[str, str], variable: str, default: str) -> str:
    path = environment.get(variable) or default
    if not _ROUTE.fullmatch(path):
        raise SettingsError(f"{variable}: a path such as {default} is wanted (given {path!r})")
    return path


def _check(routes: VertexRoutes, own_places: Collection[str]) -> None:
    """Raise SettingsError where the service itself answers at a path, otherwise than it would have to."""
    if routes.predict in (routes.health, "/health", *PROBES):
        raise SettingsError(f"{_PREDICT_ROUTE}: {routes.predict} is a probe's path")
    for variable, path in ((_HEALTH_ROUTE, routes.health), (_PREDICT_ROUTE, routes.predict)):
        is_own = path.split("/")[1] in own_places and not path.startswith(_VERTEX_OWN)
        if is_own and path not in ("/health", *PROBES):
            raise SettingsError(f"{variable}: the service answers otherwise at {path}; name another path")
