"""Vertex AI's paths, which it says itself: one for its health checks, one for predictions.

A prediction's body is `{"instances": [...], "parameters": {...}}`, an image an instance, in any of the forms of
`bodies.image_text`; the parameters are those of `/v1`, and name the call. The answer is `{"predictions": [...]}`, each
what `/v1` has as the result of an image. A body of another type, as a raw prediction may have, is read and answered as
under `/v1/classify`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from service.calls.inference import check_any_room
from service.calls.large import in_thread_if_large
from service.calls.upload import Upload
from service.errors import MalformedRequest
from service.http.answers.schemas import ModelReference
from service.http.bodies.image_text import check_structure, images_from
from service.http.bodies.json_text import parsed_json
from service.http.bodies.uploads import JSON, check_json_headers, media_type_of, read_whole
from service.http.context import context_of
from service.http.direct import DirectRoute, checked, set_deadline
from service.http.parameters import CallParameters, ClassifyParameters, FeaturesParameters
from service.http.routes.classify import classified, classify
from service.http.routes.clouds.calls import CALL, call_of
from service.http.routes.features import features_in_json
from service.http.service import ServiceDependency
from service.settings_cloud import PROBES, VertexRoutes

_FORM = 'A body is {"instances": [{"b64": "..."}, ...], "parameters": {...}}.'
_CALLS: dict[str, tuple[type[CallParameters], Any]] = {
    "classify": (ClassifyParameters, classified),
    "features": (FeaturesParameters, features_in_json),
}


class _PredictRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    instances: list[Any]
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Predict:
    images: list[Upload]
    parameters: Mapping[str, Any]


def routers_at(routes: VertexRoutes) -> tuple[APIRouter, APIRouter]:
    """Return the routers of predictions and of health checks."""
    inference = APIRouter(route_class=DirectRoute, include_in_schema=False)
    inference.add_api_route(routes.predict, predict, methods=["POST"])
    probes = APIRouter(include_in_schema=False)
    if routes.health not in PROBES:
        probes.add_api_route(routes.health, health, methods=["GET"])
    return inference, probes


async def health(service: ServiceDependency) -> Response:
    """Answer 200 once every model of the start takes work, and 503 before, and while one is not well."""
    service.check_ready()
    return Response()


async def predict(
    request: Request, service: ServiceDependency, parameters: Annotated[CallParameters, Query()]
) -> Response:
    """Answer with a prediction for each instance, or for a body that is no JSON as `/v1/classify`."""
    context, limits = context_of(request), service.body_limits
    if media_type_of(context.headers) not in ("", JSON):
        return await classify(request=request, service=service, parameters=ClassifyParameters())
    check_json_headers(context.headers, limits)
    check_any_room(context, service.models.served, parameters.engine_priority)
    body = await read_whole(request.receive, context.work, limits)
    asked = await in_thread_if_large(len(body), lambda: _read(body, limits.max_images))
    kind, answer = call_of(asked.parameters.get(CALL), _CALLS)
    given = {**parameters.model_dump(exclude_unset=True), **asked.parameters}
    of_call = checked(kind, {name: value for name, value in given.items() if name != CALL})
    set_deadline(request, service, of_call)
    response: Response = await answer(request, service, of_call, images=asked.images, make_answer=_predictions)
    return response


def _read(body: bytes, max_images: int) -> _Predict:
    check_structure(body, max_images)
    parsed = parsed_json(_PredictRequest, body, form=_FORM)
    if not parsed.instances:
        raise MalformedRequest(f"The JSON holds no instances. {_FORM}")
    files = images_from(parsed.instances, "instances", max_images)
    return _Predict([Upload(index, None, data) for index, data in enumerate(files)], parsed.parameters or {})


def _predictions(_: ModelReference, results: list[Any], *__: object) -> dict[str, Any]:
    return {"predictions": results}  # Vertex AI has no place for the rest, which is in the head
