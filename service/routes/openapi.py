"""What FastAPI cannot read off the routes for `/openapi.json`: bodies that are read by hand, and every error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from service import problems
from service.routes.bodies import JsonImages
from service.schemas import ExplainResponse, FeaturesResponse, Problem

Responses = dict[int | str, dict[str, Any]]

REQUEST_ID: dict[str, Any] = {
    "X-Request-ID": {
        "description": "The request's id: the caller's own where it sent a valid one.",
        "schema": {"type": "string"},
    }
}
RETRY_AFTER: dict[str, Any] = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
}
ANSWER_HEADERS: dict[str, Any] = {
    **REQUEST_ID,
    "X-Model-Name": {"description": "Name of the model that answered.", "schema": {"type": "string"}},
    "X-Model-Version": {"description": "Version of the model that answered.", "schema": {"type": "string"}},
    "Server-Timing": {"description": "Where the time went, in milliseconds.", "schema": {"type": "string"}},
}

_IMAGE = {"type": "string", "contentMediaType": "application/octet-stream"}

IMAGES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "One image (JPEG, PNG, WebP, BMP, GIF or TIFF) as the raw body, or several as multipart parts named "
            "`image` or as base64 in JSON."
        ),
        "content": {
            "image/*": {"schema": {}},
            "application/octet-stream": {"schema": {}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "minItems": 1, "items": _IMAGE}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "contentEncoding": "base64"},
                            "description": JsonImages.__doc__,
                        }
                    },
                }
            },
        },
    },
    "parameters": [
        {
            "name": "X-Request-ID",
            "in": "header",
            "required": False,
            "description": "1 to 128 visible ASCII characters, echoed in the answer; anything else is replaced.",
            "schema": {"type": "string"},
        }
    ],
}


def problem_answers(statuses: Iterable[int]) -> Responses:
    """Return the documentation of errors, all as problem documents."""
    by_status: dict[int, list[problems.Kind]] = {}
    for kind in problems.all_kinds().values():
        by_status.setdefault(kind.status, []).append(kind)
    documented: Responses = {}
    for status in statuses:
        kinds = by_status[status]
        documented[status] = {
            "description": " ".join(f"`{kind.code}`: {kind.meaning.splitlines()[0]}" for kind in kinds),
            "content": {problems.MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
            "headers": {**REQUEST_ID, **(RETRY_AFTER if status in (429, 503) else {})},
        }
    return documented


def json_answer(model: type[BaseModel], description: str) -> dict[str, Any]:
    """Return the documentation of a JSON answer of an inference call."""
    return {"model": model, "description": description, "headers": ANSWER_HEADERS}


FEATURES_ANSWER: dict[str, Any] = {
    "model": FeaturesResponse,
    "description": "The features of every image, in the form that Accept asks for.",
    "content": {
        "application/x-npz": {"schema": {}},
        "application/octet-stream": {"schema": {}},
    },
    "headers": {
        **ANSWER_HEADERS,
        "X-Tensor-Shape": {
            "description": "With application/octet-stream: the sizes of the axes, batch first, by commas.",
            "schema": {"type": "string"},
        },
        "X-Tensor-Dtype": {
            "description": "With application/octet-stream: float32 or float16.",
            "schema": {"type": "string"},
        },
        "X-Image-Index": {
            "description": "With application/octet-stream and on_error=skip: the images that the rows are of.",
            "schema": {"type": "string"},
        },
    },
}
EXPLAIN_ANSWER: dict[str, Any] = {
    "model": ExplainResponse,
    "description": "Where the model looked in every image, or the one image with the points of one layer drawn on it.",
    "content": {"image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}}},
    "headers": ANSWER_HEADERS,
}
INFERENCE_PROBLEMS = problem_answers((400, 401, 404, 405, 406, 408, 413, 415, 422, 429, 500, 503, 504))
READING_PROBLEMS = problem_answers((401, 404, 405, 422, 500))
PLAIN_PROBLEMS = problem_answers((405, 500))
READINESS_PROBLEMS = problem_answers((405, 500, 503))
