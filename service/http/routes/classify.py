"""`POST /v1/classify`: the most likely classes of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.calls.upload import Upload
from service.errors import InvalidParameter
from service.http.answers.negotiation import negotiate
from service.http.answers.schemas import ClassifiedImage, ClassifyResponse, Prediction
from service.http.context import context_of
from service.http.direct import DirectRoute
from service.http.inference import infer
from service.http.openapi import components as openapi
from service.http.parameters import ClassifyParameters
from service.http.responses import JSON, MakeAnswer, json_answer
from service.http.service import Service, ServiceDependency
from service.model.classes import UnknownClass
from service.model.postprocess import Choice, best_classes, softmax
from service.serving.served import Served

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
    """Answer with the `top_k` most likely classes of each image.

    Their scores are softmax probabilities among all classes of the model, of its logits over its `temperature` where it
    has one.
    """
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
    choice = _choice(served, parameters)
    class_output, temperature = manifest.class_output, manifest.temperature
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
        scores = softmax(inferred.answers[image.index].outputs[class_output], temperature)
        best = best_classes(scores, choice)
        predictions = [Prediction(class_id, labels[class_id].name, score) for class_id, score in best]
        return ClassifiedImage(image.index, image.filename, predictions)

    most = min(choice.top_k or len(choice.classes or ()), manifest.num_classes)
    size_bytes = len(inferred.answers) * most * 8
    return await json_answer(request, served, inferred, result, make_answer, size_bytes=size_bytes)


def _choice(served: Served, parameters: ClassifyParameters) -> Choice:
    """Return which predictions a request asks for; raises InvalidParameter that names what is no class."""
    try:
        classes = served.classes.chosen(parameters.classes) if parameters.classes else None
    except UnknownClass as error:
        raise InvalidParameter(f"classes: {error}.") from error
    return Choice(parameters.top_k, parameters.min_score, classes).or_top_k(served.settings.top_k)
