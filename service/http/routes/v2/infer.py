"""`POST /v2/models/{model}/infer`: inference by tensors, as `calls.inference` does it."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.calls.inference import check_room
from service.calls.large import in_thread_if_large
from service.http.context import context_of
from service.http.direct import DirectRoute
from service.http.parameters import CallParameters
from service.http.responses import JSON, ModelAnswer
from service.http.routes.v2 import openapi
from service.http.routes.v2.coding import IDENTITY, WORTHWHILE_BYTES, answer_coding, compressed
from service.http.routes.v2.path import resolve_path
from service.http.routes.v2.request import HEADER_LENGTH, plan_request
from service.http.routes.v2.response import render
from service.http.service import ServiceDependency
from service.protocol.answers import Outputs, infer_call, size_bytes
from service.protocol.call import Call
from service.serving.served import Served

RAW = "application/octet-stream"

router = APIRouter(route_class=DirectRoute, tags=["inference protocol"])


_DESCRIBED: dict[str, Any] = {
    "response_class": Response,
    "responses": {200: openapi.INFER_ANSWER, **openapi.INFERENCE_ERRORS},
    "openapi_extra": openapi.INFER_BODY,
}


@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    operation_id="v2_infer_version",
    summary="Infer with a version",
    **_DESCRIBED,
)
@router.post("/v2/models/{model}/infer", operation_id="v2_infer", summary="Infer", **_DESCRIBED)
async def infer(
    request: Request, service: ServiceDependency, parameters: Annotated[CallParameters, Query()]
) -> Response:
    """Answer with the outputs asked for, of the images in the input `image`."""
    served = resolve_path(request, service)
    plan = plan_request(request, service, served)
    context, priority = context_of(request), parameters.engine_priority
    check_room(context, served, priority)
    call = await plan.read(request.receive, context.work)
    outputs = await infer_call(context, service, served, call, priority=priority)
    return await in_thread_if_large(size_bytes(outputs), lambda: _response(request, served, call, outputs))


def _response(request: Request, served: Served, call: Call, outputs: Outputs) -> Response:
    began_s = time.monotonic()
    rendered = render(call, outputs, served.model)
    coding = answer_coding(context_of(request).headers.get("accept-encoding"))
    coding = IDENTITY if len(rendered.body) < WORTHWHILE_BYTES else coding
    body = rendered.body if coding == IDENTITY else compressed(rendered.body, coding)
    stages = context_of(request).stages
    stages.postprocessed(began_s)
    headers = {"Vary": "Accept-Encoding"}
    if coding != IDENTITY:
        headers["Content-Encoding"] = coding
    if rendered.json_bytes is not None:
        headers[HEADER_LENGTH] = str(rendered.json_bytes)
    media_type = JSON if rendered.json_bytes is None else RAW
    return ModelAnswer(body, media_type=media_type, served=served, stages=stages, headers=headers)
