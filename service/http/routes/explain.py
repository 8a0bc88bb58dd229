"""`POST /v1/explain`: where the model looked, as JSON or as a picture."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.engine.types import Answer
from service.errors import BadImages, ExplainUnavailable, InvalidParameter
from service.http.answers.negotiation import negotiate
from service.http.answers.tensors import as_json_text
from service.http.bodies.uploads import Upload
from service.http.direct import DirectRoute
from service.http.inference import Inferred, infer
from service.http.openapi import parts as openapi
from service.http.parameters import QUERY_PATTERN, ExplainParameters
from service.http.responses import (
    JSON,
    answer_headers,
    failed_image,
    in_thread_if_large,
    rendered_answer,
    timings_ms,
)
from service.http.service import Service, ServiceDependency
from service.images import overlay
from service.images.points import GroupedPoints, QueryCell, View, weights_of
from service.images.preprocessing import ImageTimings, Preprocessing, decode
from service.model.directory import ExplainLayerRecord, ExplainRecord, attention_output, position_output

PNG = "image/png"
Layers = Mapping[int, ExplainLayerRecord]
Place = tuple[float, float]

_JSON_BYTES_A_POINT = 60

router = APIRouter(route_class=DirectRoute)


@router.post(
    "/v1/explain",
    operation_id="explain",
    summary="Show where the model looked",
    tags=["inference"],
    response_class=Response,
    responses={200: openapi.EXPLAIN_ANSWER, **openapi.INFERENCE_PROBLEMS},
    openapi_extra=openapi.IMAGES_BODY,
)
async def explain(
    request: Request, service: ServiceDependency, parameters: Annotated[ExplainParameters, Query()]
) -> Response:
    """Answer with the points that every deformable attention layer sampled, and the attention that each received.

    `application/json`: for each image, layer by layer and group by group, points in pixels of the image as sent with
    weights that add up to 1. `image/png`: the one image of the request with the points of one layer drawn on it, larger
    where they weigh more, one colour a group; longer sides than 1600 pixels are shrunk, and small images enlarged.
    """
    form = negotiate(request.headers.get("accept"), (JSON, PNG))
    service.check_model(parameters.model)
    layers = _layers(_record(service), parameters, form)
    place = _place(parameters.query)
    outputs = frozenset(name(layer) for layer in layers for name in (position_output, attention_output))

    def check(images: int, decoded: Mapping[int, ImageTimings]) -> None:
        if form == PNG and images != 1:
            raise InvalidParameter(f"Accept: {PNG} answers for exactly one image, and {images} were sent.")
        for index, image in decoded.items():
            _check_place(place, index, _view(image, service.preprocessing))

    inferred = await infer(request, service, parameters, outputs=outputs, check=check)
    if form == JSON:
        points = len(inferred.answers) * sum(layer.groups * layer.points for layer in layers.values())
        return await in_thread_if_large(
            points * _JSON_BYTES_A_POINT, lambda: _response(request, service, inferred, layers, place)
        )
    if inferred.faults:
        raise BadImages(inferred.faults)
    began_s = time.monotonic()
    (explained,) = _explained(inferred, 0, layers, place, service.preprocessing).values()
    drawing = partial(_picture, inferred, explained, place, service.preprocessing)
    picture = await service.decode_pool.run(parameters.engine_priority, drawing)
    timings = timings_ms(request, inferred, postprocess_s=time.monotonic() - began_s)
    return Response(picture, media_type=PNG, headers=answer_headers(service, timings))


def _record(service: Service) -> ExplainRecord:
    """Return what the model can say; raises ExplainUnavailable, with the way to get it, where it cannot."""
    record = service.explain
    if record is None:
        name = service.model.manifest.name
        why = (
            f"{name!r} was exported without explain.onnx; export it anew, without --no-explain."
            if service.model.manifest.explain is None
            else f"The setting explain is off; without it {name!r} could say where it looks."
        )
        raise ExplainUnavailable(why)
    return record


def _layers(record: ExplainRecord, parameters: ExplainParameters, form: str) -> Layers:
    """Return the layers asked for by their places in the order in which they run."""
    count, layer = len(record.layers), parameters.layer
    if layer is None:
        return dict(enumerate(record.layers)) if form == JSON else {count - 1: record.layers[-1]}
    if layer >= count:
        raise InvalidParameter(f"layer: the model has {count} deformable layers, 0 to {count - 1}; {layer} is none.")
    return {layer: record.layers[layer]}


def _place(query: str | None) -> Place | None:
    """Return the place (x, y) that a query parameter names; raises InvalidParameter."""
    if query is None:
        return None
    if not re.fullmatch(QUERY_PATTERN, query):
        raise InvalidParameter(
            "query: give x,y in pixels of the image as sent, such as 320,240, within its width and height and the part "
            f"of it that the model sees; {query!r} is no such place."
        )
    x, y = query.split(",")
    return float(x), float(y)


def _check_place(place: Place | None, index: int, view: View) -> None:
    seen = view.seen
    if place is not None and not seen.holds(*place):
        raise InvalidParameter(
            f"query: the model saw x from {seen.left:.6g} up to {seen.right:.6g} and y from {seen.top:.6g} up to "
            f"{seen.bottom:.6g} of image {index}, which is {view.width} x {view.height} pixels; {place[0]:.6g},"
            f"{place[1]:.6g} is outside."
        )


def _view(image: ImageTimings, preprocessing: Preprocessing) -> View:
    return View(image.height, image.width, preprocessing)


def _explained(
    inferred: Inferred[Upload], index: int, layers: Layers, place: Place | None, preprocessing: Preprocessing
) -> dict[int, tuple[GroupedPoints, QueryCell | None]]:
    """Return, for each layer, where it looked in an image, and from which query."""
    view = _view(inferred.decoding[index], preprocessing)
    return {layer: _of_layer(inferred.answers[index], layer, record, view, place) for layer, record in layers.items()}


def _of_layer(
    answer: Answer, layer: int, record: ExplainLayerRecord, view: View, place: Place | None
) -> tuple[GroupedPoints, QueryCell | None]:
    map_size = record.query_rows, record.query_columns
    query = None if place is None else view.cell(place, map_size)
    points = view.points(answer.outputs[position_output(layer)], map_size)
    return GroupedPoints(points, weights_of(answer.outputs[attention_output(layer)], map_size, query)), query


def _picture(
    inferred: Inferred[Upload],
    explained: tuple[GroupedPoints, QueryCell | None],
    place: Place | None,
    preprocessing: Preprocessing,
) -> bytes:
    """Draw one layer's points on the one image; runs in a thread of the decoding pool."""
    image = decode(inferred.images[0].data, preprocessing)
    (points, weights), _ = explained
    seen = _view(inferred.decoding[0], preprocessing).seen
    return overlay.as_png(overlay.draw(image, points=points, weights=weights, seen=seen, query=place))


def _response(
    request: Request, service: Service, inferred: Inferred[Upload], layers: Layers, place: Place | None
) -> Response:
    began_s = time.monotonic()
    results = list(_results(inferred, layers, place, service.preprocessing))
    timings = timings_ms(request, inferred, postprocess_s=time.monotonic() - began_s)
    return rendered_answer(request, service, results, timings)


def _results(
    inferred: Inferred[Upload], layers: Layers, place: Place | None, preprocessing: Preprocessing
) -> Iterator[str]:
    """Yield each image's result as JSON, as `ExplainResponse` has it."""
    for upload in inferred.images:
        if upload.index in inferred.faults:
            yield failed_image(upload, inferred.faults[upload.index]).model_dump_json()
            continue
        image = inferred.decoding[upload.index]
        explained = _explained(inferred, upload.index, layers, place, preprocessing)
        rendered = ",".join(_layer_json(layer, layers[layer], *told) for layer, told in explained.items())
        yield (
            f'{{"index":{upload.index},"filename":{json.dumps(upload.filename)},"width":{image.width},'
            f'"height":{image.height},"layers":[{rendered}]}}'
        )


def _layer_json(layer: int, record: ExplainLayerRecord, told: GroupedPoints, query: QueryCell | None) -> str:
    cell = "null" if query is None else json.dumps(query._asdict())
    groups = ",".join(
        f'{{"points":{as_json_text(points)},"weights":{as_json_text(weights)}}}'
        for points, weights in zip(told.points, told.weights, strict=True)
    )
    return (
        f'{{"layer":{layer},"name":{json.dumps(record.name)},"stage":{record.stage},"block":{record.block},'
        f'"query_rows":{record.query_rows},"query_columns":{record.query_columns},"query":{cell},"groups":[{groups}]}}'
    )
