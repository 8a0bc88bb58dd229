"""What FastAPI cannot read off the protocol's routes for `/openapi.json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service.http.openapi.components import (
    ANSWER_HEADERS,
    BINARY,
    EXAMPLE_IMAGE,
    errors,
    header_parameter,
    header_refs,
    schema_ref,
)
from service.http.routes.v2.coding import CODINGS, IDENTITY
from service.http.routes.v2.request import HEADER_LENGTH
from service.protocol.images import IMAGE_DATATYPE
from service.protocol.schemas import IndexRequest, InferRequest, InferResponse, ProtocolError, RepositoryRequest

PLAIN_ERRORS = errors(405, 500)
READINESS_ERRORS = errors(405, 500, 503)
MODEL_READINESS_ERRORS = errors(404, 405, 422, 500, 503)
READING_ERRORS = errors(400, 401, 404, 405, 422, 500, 503)
REPOSITORY_ERRORS = errors(400, 401, 404, 405, 408, 413, 415, 422, 500)
CONTROL_ERRORS = errors(400, 401, 403, 404, 405, 408, 413, 415, 422, 500, 503)
INFERENCE_ERRORS = errors(400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)

CONTENT_ENCODING = "Content-Encoding"
_JSON_LENGTH = "Bytes of JSON at the beginning of the body; what follows are the binary tensors, in order."
_JSON_LENGTH_SCHEMA = {"type": "integer", "minimum": 0}
HEADERS: dict[str, dict[str, Any]] = {
    HEADER_LENGTH: {"description": _JSON_LENGTH, "schema": _JSON_LENGTH_SCHEMA, "example": 213},
    CONTENT_ENCODING: {
        "description": "Where Accept-Encoding asks for it and the answer is not small.",
        "schema": {"type": "string", "enum": list(CODINGS)},
        "example": CODINGS[0],
    },
}
"""The headers of the protocol's answers."""
MODELS = (InferRequest, IndexRequest, RepositoryRequest, ProtocolError)
"""What bodies that are read by hand, and errors, refer to."""
SCHEMAS: dict[str, Any] = {
    "RequestCoding": {
        "type": "string",
        "enum": [*CODINGS, IDENTITY],
        "description": "How a body is compressed.",
    },
    "ImageDatatype": {
        "type": "string",
        "enum": ["UINT8", "BYTES"],
        "description": "What `image` is described as.",
    },
}
"""What headers refer to."""
PARAMETERS: dict[str, Any] = {
    **header_parameter(HEADER_LENGTH, _JSON_LENGTH, _JSON_LENGTH_SCHEMA),
    **header_parameter(
        CONTENT_ENCODING,
        "How the body is compressed; it is limited before and after.",
        schema_ref("RequestCoding"),
        IDENTITY,
    ),
    **header_parameter(
        IMAGE_DATATYPE,
        "`BYTES`: describe `image` in metadata and configuration as holding image files, and take a raw body for one. "
        "`UINT8` by default.",
        schema_ref("ImageDatatype"),
        "BYTES",
    ),
}
"""The headers of the protocol's requests."""


def parameter_ref(name: str) -> dict[str, str]:
    """Return a reference to one of PARAMETERS."""
    return {"$ref": f"#/components/parameters/{name}"}


def json_body(model: type[BaseModel], description: str, example: object) -> dict[str, Any]:
    """Return the documentation of a JSON body that may be left out."""
    content = {"application/json": {"schema": schema_ref(model.__name__), "example": example}}
    return {"requestBody": {"required": False, "description": description, "content": content}}


INFER_ANSWER: dict[str, Any] = {
    "model": InferResponse,
    "description": "The outputs; those asked for in binary follow the JSON, little-endian and row-major.",
    "content": {"application/json": {}, "application/octet-stream": {"schema": BINARY}},
    "headers": {**ANSWER_HEADERS, **header_refs(*HEADERS)},
}
INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "JSON, with the tensor in it or as bytes behind it; or, where Inference-Header-Content-Length is 0, the "
            "pixels of one image alone. gzip and deflate are taken, named in Content-Encoding."
        ),
        "content": {
            "application/json": {
                "schema": schema_ref(InferRequest.__name__),
                "example": {
                    "id": "1",
                    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [EXAMPLE_IMAGE]}],
                    "outputs": [{"name": "logits", "parameters": {"classification": 3}}],
                },
            },
            "application/octet-stream": {"schema": BINARY},
        },
    },
    "parameters": [parameter_ref(name) for name in PARAMETERS],
}
