"""What FastAPI cannot read off the protocol's routes for `/openapi.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service import problems
from service.routes.openapi import ANSWER_HEADERS, REQUEST_ID, RETRY_AFTER, Responses
from service.routes.v2.coding import CODINGS
from service.routes.v2.schemas import InferRequest, InferResponse, ProtocolError


def protocol_errors(statuses: Iterable[int]) -> Responses:
    """Return the documentation of errors, all in the protocol's form."""
    documented: Responses = {}
    for status in statuses:
        kinds = [kind for kind in problems.all_kinds().values() if kind.status == status]
        documented[status] = {
            "model": ProtocolError,
            "description": " ".join(f"`{kind.code}`: {kind.meaning.splitlines()[0]}" for kind in kinds),
            "headers": {**REQUEST_ID, **(RETRY_AFTER if status in (429, 503) else {})},
        }
    return documented


PLAIN_ERRORS = protocol_errors((405, 500))
READINESS_ERRORS = protocol_errors((405, 500, 503))
MODEL_READINESS_ERRORS = protocol_errors((404, 405, 422, 500, 503))
READING_ERRORS = protocol_errors((400, 401, 404, 405, 422, 500))
REPOSITORY_ERRORS = protocol_errors((400, 401, 404, 405, 408, 413, 415, 422, 500))
INFERENCE_ERRORS = protocol_errors((400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504))

_HEADER_LENGTH = {
    "description": "Bytes of JSON at the beginning of the body; what follows are the binary tensors, in order.",
    "schema": {"type": "integer", "minimum": 0},
}
IMAGE_DATATYPE: dict[str, Any] = {
    "name": "X-Image-Datatype",
    "in": "header",
    "required": False,
    "description": (
        "`BYTES`: describe `image` in metadata and configuration as holding image files, and take a raw body for one."
    ),
    "schema": {"type": "string", "enum": ["UINT8", "BYTES"], "default": "UINT8"},
}

INFER_ANSWER: dict[str, Any] = {
    "model": InferResponse,
    "description": "The outputs; those asked for in binary follow the JSON, little-endian and row-major.",
    "content": {"application/octet-stream": {"schema": {}}},
    "headers": {
        **ANSWER_HEADERS,
        "Inference-Header-Content-Length": _HEADER_LENGTH,
        "Content-Encoding": {
            "description": "Where Accept-Encoding asks for it and the answer is not small.",
            "schema": {"type": "string", "enum": list(CODINGS)},
        },
    },
}
_REQUEST_SCHEMA = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
DEFINITIONS: dict[str, Any] = {**_REQUEST_SCHEMA.pop("$defs"), InferRequest.__name__: _REQUEST_SCHEMA}
"""Schemas that only bodies read by hand refer to."""

INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "JSON, with the tensor in it or as bytes behind it; or, where Inference-Header-Content-Length is 0, the "
            "pixels of one image alone. gzip and deflate are taken, named in Content-Encoding."
        ),
        "content": {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{InferRequest.__name__}"}},
            "application/octet-stream": {"schema": {}},
        },
    },
    "parameters": [
        {"name": "Inference-Header-Content-Length", "in": "header", "required": False, **_HEADER_LENGTH},
        {
            "name": "Content-Encoding",
            "in": "header",
            "required": False,
            "description": "How the body is compressed; it is limited before and after.",
            "schema": {"type": "string", "enum": [*CODINGS, "identity"]},
        },
        IMAGE_DATATYPE,
        {
            "name": "X-Request-ID",
            "in": "header",
            "required": False,
            "description": "1 to 128 visible ASCII characters, echoed in the answer; anything else is replaced.",
            "schema": {"type": "string"},
        },
    ],
}
