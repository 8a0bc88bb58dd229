"""`POST /v1/classify`: the most likely classes of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.http.answers.negotiation import negotiate
from service.http.answers.schemas import ClassifiedImage, ClassifyResponse, Prediction
from service.http.bodies.uploads import Upload
from service.http.context import context_of
from service.http.direct import DirectRoute
from service.http.inference import infer
from service.http.openapi import components as openapi
from service.http.parameters import ClassifyParameters
from service.http.responses import JSON, MakeAnswer, json_answer
from service.http.service import Service, ServiceDependency
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
    negotiate(context_of(request).headers.get("accept"), (JSON,))
    return await classified(request, service, parameters)


async def classified(
    request: Request,
    service: Service,
    parameters: ClassifyParameters,
    *,
    images: Sequence[Upload] | None = None,
    make_answer: MakeAnswer[ClassifiedImage] = ClassifyResponse,
) -> Response:
    """Answer with the classes of a request's images: those in its body, or `images` where that was read already."""
    served = service.resolve(context_of(request), *parameters.model_and_version)
    manifest, labels = served.manifest, served.model.labels
    k = min(parameters.top_k or served.settings.top_k, manifest.num_classes)
    class_output = manifest.class_output
    inferred = await infer(
        request,
        service,
        served,
        parameters,
        outputs=frozenset({class_output}),
        preprocessing=served.preprocessing_at(parameters.size),
        images=images,
    )

    def result(image: Upload) -> ClassifiedImage:
        best = top_k(softmax(inferred.answers[image.index].outputs[class_output]), k)
        predictions = [Prediction(class_id, labels[class_id].name, score) for class_id, score in best]
        return ClassifiedImage(image.index, image.filename, predictions)

    size_bytes = len(inferred.answers) * k * 8
    return await json_answer(request, served, inferred, result, make_answer, size_bytes=size_bytes)
