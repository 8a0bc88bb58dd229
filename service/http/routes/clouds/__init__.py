"""The paths at which the platforms of clouds ask, a module for each, imported where it is switched on.

They read a request as its platform sends it; what it asks is a call of `/v1`. They are in no OpenAPI document, which
is the same for every server: who asks there is the platform, whose own interface its callers see.

Imports: `calls`, `errors`, `http`, `settings_cloud`.
"""

from __future__ import annotations

import os

from fastapi import APIRouter

from service.settings_cloud import SAGEMAKER, vertex_routes


def routers_of(cloud: str) -> tuple[APIRouter, APIRouter]:
    """Return the routers of a platform: that of inference, and that of its health checks."""
    if cloud == SAGEMAKER:
        from service.http.routes.clouds import sagemaker

        return sagemaker.inference, sagemaker.probes
    from service.http.routes.clouds import vertex

    return vertex.routers_at(vertex_routes(os.environ))
