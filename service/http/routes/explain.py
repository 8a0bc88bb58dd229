"""`POST /v1/explain`: where the model looked, as JSON or as a picture."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.calls.inference import Inferred
from service.calls.upload import Upload
from service.engine.types import Answer
from service.errors import BadImages, ExplainUnavailable, InvalidParameter
from service.http.answers.negotiation import negotiate
from service.http.answers.schemas import Cell, ExplainedImage, ExplainResponse, LayerExplanation, PointGroup
from service.http.answers.tensors import as_json
from service.http.context import context_of
from service.http.direct import DirectRoute
from service.http.inference import infer
from service.http.openapi import components as openapi
from service.http.parameters import QUERY_PATTERN, ExplainParameters
from service.http.responses import JSON, ModelAnswer, json_answer
from service.http.service import ServiceDependency
from service.images import overlay
from service.images.points import GroupedPoints, Point, QueryCell, View, weights_of
from service.images.preprocessing import ImageTimings, Preprocessing, decode
from service.model.explain_record import ExplainLayerRecord, ExplainRecord, attention_output, position_output
from service.serving.served import Served

PNG = "image/png"
Layers = Mapping[int, ExplainLayerRecord]

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
    form = negotiate(context_of(request).headers.get("accept"), (JSON, PNG))
    served = service.resolve(context_of(request), *parameters.model_and_version)
    preprocessing = served.preprocessing_at(parameters.size, explains=True)
    layers = _layers(_record_at(served, preprocessing.crop), parameters, form)
    query = _point(parameters.query)
    outputs = frozenset(name(layer) for layer in layers for name in (position_output, attention_output))

    def check(images: int, decoded: Mapping[int, ImageTimings]) -> None:
        if form == PNG and images != 1:
            raise InvalidParameter(f"Accept: {PNG} answers for exactly one image, and {images} were sent.")
        for index, image in decoded.items():
            _check_seen(query, index, _view(image, preprocessing))

    inferred = await infer(
        request, service, served, parameters, outputs=outputs, preprocessing=preprocessing, check=check
    )
    if form == JSON:

        def result(image: Upload) -> ExplainedImage:
            return _explained(inferred, image, layers, query, preprocessing)

        points = len(inferred.answers) * sum(layer.groups * layer.points for layer in layers.values())
        size_bytes = points * _JSON_BYTES_A_POINT
        return await json_answer(request, served, inferred, result, ExplainResponse, size_bytes=size_bytes)
    if inferred.faults:
        raise BadImages(inferred.faults)
    began_s, stages = time.monotonic(), context_of(request).stages
    drawing = partial(_picture, inferred, layers, query, preprocessing)
    picture = await service.decode_pool.run(parameters.engine_priority, drawing)
    stages.postprocessed(began_s)
    return ModelAnswer(picture, media_type=PNG, served=served, stages=stages)


def _record(served: Served) -> ExplainRecord:
    """Return what the model can say; raises ExplainUnavailable, with the way to get it, where it cannot."""
    record = served.explain
    if record is None:
        name = served.name
        why = (
            f"{name!r} was exported without explain.onnx; export it anew, without --no-explain."
            if served.manifest.explain is None
            else f"The setting explain is off; without it {name!r} could say where it looks."
        )
        raise ExplainUnavailable(why)
    return record


def _record_at(served: Served, size: tuple[int, int]) -> ExplainRecord:
    """Return what the model can say of images of a size that it is served at; raises as `_record`."""
    record, image = _record(served), served.manifest.input
    return record if size == (image.height, image.width) else record.at(*size)


def _layers(record: ExplainRecord, parameters: ExplainParameters, form: str) -> Layers:
    """Return the layers asked for by their places in the order in which they run."""
    count, layer = len(record.layers), parameters.layer
    if layer is None:
        return dict(enumerate(record.layers)) if form == JSON else {count - 1: record.layers[-1]}
    if layer >= count:
        raise InvalidParameter(f"layer: the model has {count} deformable layers, 0 to {count - 1}; {layer} is none.")
    return {layer: record.layers[layer]}


def _point(query: str | None) -> Point | None:
    """Return the point (x, y) that a query parameter names; raises InvalidParameter."""
    if query is None:
        return None
    if not re.fullmatch(QUERY_PATTERN, query):
        raise InvalidParameter(
            "query: give x,y in pixels of the image as sent, such as 320,240, within its width and height and the part "
            f"of it that the model sees; {query!r} is no such place."
        )
    x, y = query.split(",")
    return float(x), float(y)


def _check_seen(query: Point | None, index: int, view: View) -> None:
    """Raise InvalidParameter where the model did not see the point of an image that is asked for."""
    seen = view.seen
    if query is not None and not seen.holds(*query):
        raise InvalidParameter(
            f"query: the model saw x from {seen.left:.6g} up to {seen.right:.6g} and y from {seen.top:.6g} up to "
            f"{seen.bottom:.6g} of image {index}, which is {view.width} x {view.height} pixels; {query[0]:.6g},"
            f"{query[1]:.6g} is outside."
        )


def _view(image: ImageTimings, preprocessing: Preprocessing) -> View:
    return View(image.height, image.width, preprocessing)


def _sampled(
    answer: Answer, layer: int, record: ExplainLayerRecord, view: View, query: Point | None
) -> tuple[GroupedPoints, QueryCell | None]:
    """Return where a layer looked in an image, and the cell of the query."""
    map_size = record.query_rows, record.query_columns
    cell = None if query is None else view.cell(query, map_size, record.stride)
    points = view.points(answer.outputs[position_output(layer)], map_size, record.stride)
    return GroupedPoints(points, weights_of(answer.outputs[attention_output(layer)], map_size, cell)), cell


def _picture(inferred: Inferred[Upload], layers: Layers, query: Point | None, preprocessing: Preprocessing) -> bytes:
    """Draw one layer's points on the one image; runs in a thread of the decoding pool."""
    view = _view(inferred.decoding[0], preprocessing)
    ((layer, record),) = layers.items()
    (points, weights), _ = _sampled(inferred.answers[0], layer, record, view, query)
    image = decode(inferred.images[0].data, preprocessing)
    return overlay.as_png(overlay.draw(image, points=points, weights=weights, seen=view.seen, query=query))


def _explained(
    inferred: Inferred[Upload], image: Upload, layers: Layers, query: Point | None, preprocessing: Preprocessing
) -> ExplainedImage:
    answer, view = inferred.answers[image.index], _view(inferred.decoding[image.index], preprocessing)
    explained = [_explained_layer(answer, layer, record, view, query) for layer, record in layers.items()]
    return ExplainedImage(image.index, image.filename, view.width, view.height, explained)


def _explained_layer(
    answer: Answer, layer: int, record: ExplainLayerRecord, view: View, query: Point | None
) -> LayerExplanation:
    (points, weights), cell = _sampled(answer, layer, record, view, query)
    return LayerExplanation(
        layer=layer,
        name=record.name,
        stage=record.stage,
        block=record.block,
        query_rows=record.query_rows,
        query_columns=record.query_columns,
        query=None if cell is None else Cell(*cell),
        groups=[PointGroup(as_json(each), as_json(share)) for each, share in zip(points, weights, strict=True)],
    )
