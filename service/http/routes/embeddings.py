"""`POST /v1/embeddings`: the embedding of each image, as OpenAI's clients ask for it and read it.

Body and answer are OpenAI's; all else is as under `/v1`. The model is named in the body, so that only a server without
room for any model refuses before it has read it.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.calls.inference import Inferred, check_any_room, check_room, infer_images
from service.calls.large import in_thread_if_large
from service.calls.tensors import check_finite
from service.calls.upload import Upload
from service.errors import InvalidParameter
from service.http.answers.negotiation import negotiate
from service.http.answers.schemas import Embedding, EmbeddingsResponse, EmbeddingsUsage
from service.http.answers.tensors import as_base64_text, as_json
from service.http.bodies.embeddings import EmbeddingsCall, read_embeddings
from service.http.bodies.uploads import check_json_headers, read_whole
from service.http.context import context_of
from service.http.direct import DirectRoute
from service.http.openapi import components as openapi
from service.http.parameters import SizedParameters, name_and_version
from service.http.problems import EMBEDDINGS_PATH
from service.http.responses import JSON, ModelAnswer
from service.http.service import ServiceDependency
from service.model.manifest import EMBEDDING, Manifest, unknown_outputs
from service.model.postprocess import l2_normalized
from service.serving.served import Served
from service.telemetry.stages import Stages

router = APIRouter(route_class=DirectRoute)


@router.post(
    EMBEDDINGS_PATH,
    operation_id="embeddings",
    summary="Embed images, as OpenAI's clients ask",
    tags=["inference"],
    response_class=Response,
    responses={
        200: openapi.json_answer(EmbeddingsResponse, "The embedding of every image."),
        **openapi.INFERENCE_PROBLEMS,
    },
    openapi_extra=openapi.EMBEDDINGS_BODY,
)
async def embeddings(
    request: Request, service: ServiceDependency, parameters: Annotated[SizedParameters, Query()]
) -> Response:
    """Answer with the embedding of each image, of length 1, so that a dot product is the cosine of the angle.

    Embeddings are those of `/v1/features`, scaled. Images come in the body, none is fetched, and there is no text.
    """
    context, priority, limits = context_of(request), parameters.engine_priority, service.body_limits
    negotiate(context.headers.get("accept"), (JSON,))
    check_json_headers(context.headers, limits)
    check_any_room(context, service.models.served, priority)
    body = await read_whole(request.receive, context.work, limits)
    call = await in_thread_if_large(len(body), lambda: read_embeddings(body, limits.max_images))
    served = service.resolve(context, *name_and_version(call.model))
    preprocessing = served.preprocessing_at(parameters.size)
    _check_dimensions(served.manifest, call.dimensions)
    check_room(context, served, priority, preprocessing.crop)
    inferred = await infer_images(
        context,
        service.decode_pool,
        served,
        call.images,
        outputs=frozenset({EMBEDDING}),
        priority=priority,
        preprocessing=preprocessing,
    )
    size_bytes = sum(answer.outputs[EMBEDDING].nbytes for answer in inferred.answers.values())
    return await in_thread_if_large(size_bytes, lambda: _answer(context.stages, served, call, inferred))


def _check_dimensions(manifest: Manifest, dimensions: int | None) -> None:
    """Raise InvalidParameter unless there are embeddings, as long as they are asked to be, if they are."""
    if lacking := unknown_outputs([EMBEDDING], manifest.output_names):
        raise InvalidParameter(f"model: {lacking}.")
    size, *_ = manifest.output(EMBEDDING).shape
    if dimensions not in (None, size):
        raise InvalidParameter(f"dimensions: embeddings of {manifest.name!r} have {size} numbers; none is shortened.")


def _answer(stages: Stages, served: Served, call: EmbeddingsCall, inferred: Inferred[Upload]) -> Response:
    began_s = time.monotonic()
    vectors = np.stack([inferred.answers[image.index].outputs[EMBEDDING] for image in call.images])
    check_finite(vectors)
    if call.normalize:
        vectors = l2_normalized(vectors)
    render = as_base64_text if call.as_base64 else as_json
    data = [Embedding("embedding", index, render(vector)) for index, vector in enumerate(vectors)]
    answer = EmbeddingsResponse("list", data, f"{served.name}:{served.version}", EmbeddingsUsage(len(data), len(data)))
    stages.postprocessed(began_s)
    return ModelAnswer(orjson.dumps(answer), media_type=JSON, served=served, stages=stages)
