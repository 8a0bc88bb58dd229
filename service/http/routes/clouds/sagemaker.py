"""Amazon SageMaker's paths: `GET /ping` and `POST /invocations`.

The body is in any form of `/v1`, by its Content-Type, and so is the answer, by Accept: SageMaker passes both on. It
passes on no query. What `/v1` has there is in the header that it does pass on, X-Amzn-SageMaker-Custom-Attributes,
written as a query is: `call=features&normalize=true`.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.errors import InvalidParameter
from service.http.context import context_of
from service.http.direct import DirectRoute, parsed, set_deadline
from service.http.parameters import CallParameters, ClassifyParameters, ExplainParameters, FeaturesParameters
from service.http.routes.classify import classify
from service.http.routes.clouds.calls import CALL, call_of
from service.http.routes.explain import explain
from service.http.routes.features import features
from service.http.service import ServiceDependency

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
_CALLS: dict[str, tuple[type[CallParameters], Any]] = {
    "classify": (ClassifyParameters, classify),
    "features": (FeaturesParameters, features),
    "explain": (ExplainParameters, explain),
}

inference = APIRouter(route_class=DirectRoute, include_in_schema=False)
probes = APIRouter(include_in_schema=False)


@probes.get("/ping")
async def ping(service: ServiceDependency) -> Response:
    """Answer 200 and nothing else once every model of the start takes work, and 503 before, and while one is not well.

    SageMaker replaces a container that goes on answering otherwise.
    """
    service.check_ready()
    return Response()


@inference.post("/invocations")
async def invocations(
    request: Request, service: ServiceDependency, parameters: Annotated[CallParameters, Query()]
) -> Response:
    """Answer as the call of `/v1` that the custom attributes name, or else as `/v1/classify`."""
    attributes = context_of(request).headers.get(ATTRIBUTES.lower(), "")
    try:
        given = parse_qsl(attributes, keep_blank_values=True, strict_parsing=bool(attributes))
    except ValueError as error:
        raise InvalidParameter(f"{ATTRIBUTES} is written as a query, NAME=VALUE&NAME=VALUE: {error}.") from error
    kind, answer = call_of(dict(given).get(CALL), _CALLS)
    given = [*parameters.model_dump(exclude_unset=True).items(), *given]
    asked = parsed(kind, urlencode([(name, value) for name, value in given if name != CALL]).encode())
    set_deadline(request, service, asked)
    response: Response = await answer(request=request, service=service, parameters=asked)
    return response
