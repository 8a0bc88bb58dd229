"""`POST /v1/classify`: the most likely classes of each image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.http.answers.negotiation import negotiate
from service.http.answers.schemas import ClassifiedImage, ClassifyResponse, FailedImage, ModelReference, Prediction
from service.http.bodies.uploads import Upload
from service.http.direct import DirectRoute
from service.http.inference import Inferred, infer
from service.http.middleware import context_of
from service.http.openapi import parts as openapi
from service.http.parameters import ClassifyParameters
from service.http.responses import JSON, answer_headers, failed_image, in_thread_if_large, timings_ms
from service.http.service import Service, ServiceDependency
from service.model.directory import Label
from service.model.postprocess import softmax, top_k

router = APIRouter(route_class=DirectRoute)


@router.post(
    "/v1/classify",
    operation_id="classify",
    summary="Classify images",
    tags=["inference"],
    response_class=Response,
    responses={200: openapi.json_answer(ClassifyResponse, "The classes of every image."), **openapi.INFERENCE_PROBLEMS},
    openapi_extra=openapi.IMAGES_BODY,
)
async def classify(
    request: Request, service: ServiceDependency, parameters: Annotated[ClassifyParameters, Query()]
) -> Response:
    """Answer with the `top_k` most likely classes of each image, their scores being softmax probabilities."""
    negotiate(request.headers.get("accept"), (JSON,))
    k = min(parameters.top_k or service.settings.top_k, service.model.manifest.num_classes)
    inferred = await infer(request, service, parameters, outputs=frozenset({"logits"}))
    return await in_thread_if_large(len(inferred.answers) * k * 8, lambda: _response(request, service, inferred, k))


def _response(request: Request, service: Service, inferred: Inferred[Upload], k: int) -> Response:
    began_s = time.monotonic()
    results = [_result(inferred, index, service.model.labels, k) for index in range(len(inferred.images))]
    timings = timings_ms(request, inferred, postprocess_s=time.monotonic() - began_s)
    body = ClassifyResponse(
        model=ModelReference.of(service.model.manifest),
        results=results,
        request_id=context_of(request).request_id,
        timings_ms=timings,
    )
    return Response(body.model_dump_json(), media_type=JSON, headers=answer_headers(service, timings))


def _result(inferred: Inferred[Upload], index: int, labels: Sequence[Label], k: int) -> ClassifiedImage | FailedImage:
    upload = inferred.images[index]
    if index in inferred.faults:
        return failed_image(upload, inferred.faults[index])
    best = top_k(softmax(inferred.answers[index].outputs["logits"]), k)
    return ClassifiedImage(
        index=index,
        filename=upload.filename,
        predictions=[
            Prediction(class_id=class_id, label=labels[class_id].name, score=score) for class_id, score in best
        ],
    )
