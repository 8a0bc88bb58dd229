"""What FastAPI cannot read off the routes for `/openapi.json`: bodies that are read by hand, headers, and every error.

What several operations have stands once, in the document's `components`, where `service.http.openapi.document` puts
it; they refer to it. A route states only the statuses of its errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from service.errors import BadImages, ImageFault
from service.http import problems
from service.http.answers.schemas import ExplainResponse, FeaturesResponse
from service.http.bodies.embeddings import EmbeddingsRequest
from service.http.bodies.uploads import JsonImages
from service.http.problems import Problem

Responses = dict[int | str, dict[str, Any]]

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
"""Bytes as they are. OpenAPI 3.1 would take an empty schema too, of which generators make `unknown`."""


def schema_ref(name: str) -> dict[str, str]:
    """Return a reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def header_refs(*names: str) -> dict[str, dict[str, str]]:
    """Return references to some of the document's headers."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


EXAMPLE_REQUEST_ID = "7f1c1a9d0c3b4f0d9a3f0f8e6d0a4b11"


def _header(description: str, example: str | int, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}, "example": example}


HEADERS: Mapping[str, dict[str, Any]] = {
    "X-Request-ID": {
        **_header("The request's id: the caller's own where it sent a valid one.", EXAMPLE_REQUEST_ID),
        "required": True,
    },
    "Retry-After": _header("Seconds after which to try again.", 1, type="integer", minimum=1),
    "X-Model-Name": _header("Name of the model that answered.", "dat_tiny"),
    "X-Model-Version": _header("Version of the model that answered.", "1", pattern="^[0-9]+$"),
    "Server-Timing": _header("Where the time went, in milliseconds.", "decode;dur=4.1, inference;dur=52.0"),
    "X-Tensor-Shape": _header(
        "With application/octet-stream: the sizes of the axes, batch first, by commas.", "1,512", pattern="^[0-9,]+$"
    ),
    "X-Tensor-Dtype": _header(
        "With application/octet-stream: type of the numbers.", "float32", enum=["float32", "float16"]
    ),
    "X-Image-Index": _header(
        "With application/octet-stream and on_error=skip: the images that the rows are of.", "0,2", pattern="^[0-9,]+$"
    ),
    "Allow": _header("The methods that the path takes.", "POST"),
    "WWW-Authenticate": _header("How to bear the key.", "Bearer"),
    "Accept-Encoding": _header("The content codings that a body may have.", "identity"),
}
_ANSWER_HEADERS = ("X-Model-Name", "X-Model-Version", "Server-Timing")
ANSWER_HEADERS: dict[str, Any] = header_refs(*_ANSWER_HEADERS)
ERROR_HEADERS: Mapping[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    415: ("Accept-Encoding",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
"""The headers of an error by its status."""


def header_parameter(
    name: str, description: str, schema: Mapping[str, Any], example: object = None
) -> dict[str, dict[str, Any]]:
    """Return the documentation, by its name, of a header that a request may have."""
    described = {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
    return {name: described if example is None else {**described, "example": example}}


REQUEST_ID = "X-Request-ID"
PARAMETERS: Mapping[str, dict[str, Any]] = header_parameter(
    REQUEST_ID,
    "1 to 128 visible ASCII characters, echoed in the answer; anything else is replaced.",
    {"type": "string"},
    EXAMPLE_REQUEST_ID,
)

EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAoAAAAHgAQAAAAAdquFJAAAAPUlEQVR42u3BAQ0AAADCoPdPbQ43oAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAADgzwCX4AABS8wbSgAAAABJRU5ErkJggg=="
)
"""A black PNG of 640 x 480 pixels, in base64."""
_BASE64 = r"^\s*([Dd][Aa][Tt][Aa]:[^,]*,)?[A-Za-z0-9+/_=%\s-]*$"
BODY_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "ImageForm": {
        "type": "object",
        "description": (
            "Images as the parts of a form, each with its file name. Fields named `images`, `file` and `files`, and "
            "any of the four with `[]` or a number in brackets behind it, are taken as well."
        ),
        "additionalProperties": False,
        "required": ["image"],
        "properties": {
            "image": {"type": "array", "minItems": 1, "items": BINARY, "description": "One part an image."},
        },
    },
    "ImageBatch": {
        "type": "object",
        "description": JsonImages.__doc__,
        "additionalProperties": False,
        "required": ["images"],
        "properties": {
            "images": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "contentEncoding": "base64", "minLength": 4, "pattern": _BASE64},
                "description": (
                    "One string an image: base64 in the usual or the URL-safe alphabet, padded or not, also in lines "
                    "or as a `data:` URL."
                ),
            }
        },
    },
}
"""What the two forms of several images look like."""

MODELS = (Problem, EmbeddingsRequest)
"""What errors, and bodies that are read by hand, refer to."""

IMAGES = "Images"
REQUEST_BODIES: Mapping[str, dict[str, Any]] = {
    IMAGES: {
        "required": True,
        "description": (
            "One image (JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF, and HEIC where its decoder is installed) as the raw "
            "body, also under its own type `image/*`; or several as multipart parts named `image` or as base64 in JSON."
        ),
        "content": {
            "application/json": {"schema": schema_ref("ImageBatch"), "example": {"images": [EXAMPLE_IMAGE]}},
            "multipart/form-data": {"schema": schema_ref("ImageForm")},
            "image/*": {"schema": BINARY},
            "application/octet-stream": {"schema": BINARY},
        },
    }
}
IMAGES_BODY: dict[str, Any] = {"requestBody": {"$ref": f"#/components/requestBodies/{IMAGES}"}}

EMBEDDINGS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Images where OpenAI's interface has text; text and addresses of images are refused.",
        "content": {
            "application/json": {
                "schema": schema_ref(EmbeddingsRequest.__name__),
                "example": {"input": [f"data:image/png;base64,{EXAMPLE_IMAGE}"], "encoding_format": "float"},
            }
        },
    }
}


def errors(*statuses: int) -> Responses:
    """Return the statuses of a route's errors; `error` documents each once, for all routes."""
    return {status: {} for status in statuses}


def error(status: int, *, protocol: bool) -> dict[str, Any]:
    """Return the documentation of a status: as problem documents, or in the form of the inference protocol."""
    kinds = [kind for kind in problems.all_kinds().values() if kind.status == status]
    answers = {kind.code: _error_answer(kind, protocol=protocol) for kind in kinds}
    schema = schema_ref("ProtocolError" if protocol else "Problem")
    content: dict[str, Any]
    if protocol:
        content = {"application/json": {"example": answers[kinds[-1].code], "schema": schema}}
    else:
        examples = {kind.code: {"summary": kind.title, "value": answers[kind.code]} for kind in kinds}
        content = {problems.MEDIA_TYPE: {"schema": schema, "examples": examples}}
    return {
        "description": " ".join(f"`{kind.code}`: {_first_line(kind)}" for kind in kinds),
        "content": content,
        "headers": header_refs(REQUEST_ID, *ERROR_HEADERS.get(status, ())),
    }


def _error_answer(kind: problems.Kind, *, protocol: bool) -> Any:
    """Return a kind's answer, as it is sent."""
    if kind.code == BadImages.code:
        fault = ImageFault("empty_image", "The image holds no bytes.")
        response = problems.problem_for(BadImages({2: fault}), request_id=EXAMPLE_REQUEST_ID)
    else:
        response = problems.ProblemResponse(kind, detail=_first_line(kind), request_id=EXAMPLE_REQUEST_ID)
    return json.loads(bytes(response.under(problems.PROTOCOL_ROOT if protocol else "/").body))


def _first_line(kind: problems.Kind) -> str:
    return kind.meaning.splitlines()[0]


def json_answer(model: type, description: str) -> dict[str, Any]:
    """Return the documentation of a JSON answer of an inference call."""
    return {"model": model, "description": description, "headers": ANSWER_HEADERS}


FEATURES_ANSWER: dict[str, Any] = {
    "model": FeaturesResponse,
    "description": "The features of every image, in the form that Accept asks for.",
    "content": {
        "application/json": {},
        "application/x-npz": {"schema": BINARY},
        "application/octet-stream": {"schema": BINARY},
    },
    "headers": header_refs(*_ANSWER_HEADERS, "X-Tensor-Shape", "X-Tensor-Dtype", "X-Image-Index"),
}
EXPLAIN_ANSWER: dict[str, Any] = {
    "model": ExplainResponse,
    "description": "Where the model looked in every image, or the one image with the points of one layer drawn on it.",
    "content": {"application/json": {}, "image/png": {"schema": BINARY}},
    "headers": ANSWER_HEADERS,
}
PLAIN_PROBLEMS = errors(405, 500)
READINESS_PROBLEMS = errors(405, 500, 503)
READING_PROBLEMS = errors(401, 404, 405, 422, 500)
MODEL_READING_PROBLEMS = errors(401, 404, 405, 422, 500, 503)
INFERENCE_PROBLEMS = errors(400, 401, 404, 405, 406, 408, 413, 415, 422, 429, 500, 503, 504)
