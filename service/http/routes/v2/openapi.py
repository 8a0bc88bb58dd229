"""What FastAPI cannot read off the protocol's routes for `/openapi.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from service.http.openapi.components import (
    ANSWER_HEADERS,
    BINARY,
    ERROR_HEADERS,
    EXAMPLE_IMAGE,
    Responses,
    header_refs,
    kinds_of,
    meanings,
    schema_ref,
)
from service.http.routes.v2.coding import CODINGS
from service.http.routes.v2.schemas import IndexRequest, InferRequest, InferResponse, ProtocolError, RepositoryRequest


def protocol_errors(statuses: Iterable[int]) -> Responses:
    """Return the documentation of errors, all in the protocol's form."""
    return {
        status: {
            "model": ProtocolError,
            "description": meanings(status),
            "content": {"application/json": {"example": {"error": kinds_of(status)[-1].meaning.splitlines()[0]}}},
            "headers": header_refs(*ERROR_HEADERS.get(status, ())),
        }
        for status in statuses
    }


PLAIN_ERRORS = protocol_errors((405, 500))
READINESS_ERRORS = protocol_errors((405, 500, 503))
MODEL_READINESS_ERRORS = protocol_errors((404, 405, 422, 500, 503))
READING_ERRORS = protocol_errors((400, 401, 404, 405, 422, 500))
REPOSITORY_ERRORS = protocol_errors((400, 401, 404, 405, 408, 413, 415, 422, 500))
INFERENCE_ERRORS = protocol_errors((400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504))

HEADER_LENGTH = "Inference-Header-Content-Length"
_HEADER_LENGTH: dict[str, Any] = {
    "description": "Bytes of JSON at the beginning of the body; what follows are the binary tensors, in order.",
    "schema": {"type": "integer", "minimum": 0},
}
HEADERS: dict[str, dict[str, Any]] = {
    HEADER_LENGTH: {**_HEADER_LENGTH, "example": 213},
    "Content-Encoding": {
        "description": "Where Accept-Encoding asks for it and the answer is not small.",
        "schema": {"type": "string", "enum": list(CODINGS)},
        "example": CODINGS[0],
    },
}
"""The headers of the protocol's answers."""
IMAGE_DATATYPE = "X-Image-Datatype"

INFER_ANSWER: dict[str, Any] = {
    "model": InferResponse,
    "description": "The outputs; those asked for in binary follow the JSON, little-endian and row-major.",
    "content": {"application/json": {}, "application/octet-stream": {"schema": BINARY}},
    "headers": {**ANSWER_HEADERS, **header_refs(*HEADERS)},
}
_CODING = "RequestCoding"
_DATATYPE = "ImageDatatype"


def _definitions(*models: type[BaseModel]) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions |= {**schema.pop("$defs", {}), model.__name__: schema}
    return definitions


DEFINITIONS: dict[str, Any] = {
    **_definitions(InferRequest, IndexRequest, RepositoryRequest),
    _CODING: {"type": "string", "enum": [*CODINGS, "identity"], "description": "How a body is compressed."},
    _DATATYPE: {"type": "string", "enum": ["UINT8", "BYTES"], "description": "What `image` is described as."},
}
"""Schemas that only headers, and bodies read by hand, refer to."""
PARAMETERS: dict[str, Any] = {
    HEADER_LENGTH: {"name": HEADER_LENGTH, "in": "header", "required": False, **_HEADER_LENGTH},
    "Content-Encoding": {
        "name": "Content-Encoding",
        "in": "header",
        "required": False,
        "description": "How the body is compressed; it is limited before and after.",
        "schema": schema_ref(_CODING),
        "example": "identity",
    },
    IMAGE_DATATYPE: {
        "name": IMAGE_DATATYPE,
        "in": "header",
        "required": False,
        "description": (
            "`BYTES`: describe `image` in metadata and configuration as holding image files, and take a raw body for "
            "one. `UINT8` by default."
        ),
        "schema": schema_ref(_DATATYPE),
        "example": "BYTES",
    },
}
"""The headers of the protocol's requests."""


def parameter_ref(name: str) -> dict[str, str]:
    """Return a reference to one of PARAMETERS."""
    return {"$ref": f"#/components/parameters/{name}"}


def json_body(model: type[BaseModel], description: str, example: object) -> dict[str, Any]:
    """Return the documentation of a JSON body that may be left out."""
    content = {"application/json": {"schema": schema_ref(model.__name__), "example": example}}
    return {"requestBody": {"required": False, "description": description, "content": content}}


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
