"""The OpenAPI document: what FastAPI reads off the routes, completed and made plain for generators of code.

It depends on the routes alone, on no model or release, and of the settings on the root path alone, with which `servers`
says where it is: every other server publishes the same one, and the repository's `openapi.json` is it. So a key is
always described, as something that a server may want or not.

- Every operation takes `X-Request-ID`, and every response has it.
- Errors, headers and bodies that several operations have are described once, in `components`.
- A parameter may be left out, but is never null; schemas bear no titles beside their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.routing import BaseRoute

from service.http.openapi import parts as openapi
from service.http.openapi.examples import ANSWERS
from service.http.problems import MEDIA_TYPE, Problem
from service.http.routes.v2 import openapi as v2_openapi

Json = dict[str, Any]

TITLE = "DAT Serve"
INTERFACE_VERSION = "1.0.0"
"""Of what is described here: the first number changes where a client must."""
_DESCRIPTION = """Image classification and features with the Deformable Attention Transformer.

Errors are `application/problem+json` (RFC 9457), and under `/v2` what the Open Inference Protocol has. A refused
request whose body was not read closes its connection.
"""
_TAGS = [
    {"name": "inference", "description": "Classes, features, and where the model looked."},
    {"name": "models", "description": "What is served."},
    {"name": "operations", "description": "For those who run the service; no key is asked for."},
    {"name": "inference protocol", "description": "The Open Inference Protocol, version 2, with its extensions."},
]
_MODEL = {"description": "Name of the model.", "example": "dat_tiny"}
_PATH_PARAMETERS = {
    "name": _MODEL,
    "model": _MODEL,
    "version": {"description": "Version of the model: a whole number from 1.", "example": "1"},
}
_KEY = "api_key"
_UNAUTHORIZED = "401"


def of_routes(routes: Sequence[BaseRoute], *, root_path: str = "") -> Json:
    """Return the document of an application's routes; `root_path` is where a proxy has the server, if not at `/`."""
    document = get_openapi(
        title=TITLE,
        version=INTERFACE_VERSION,
        description=_DESCRIPTION,
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        servers=[{"url": root_path or "/", "description": "The server that this document is from"}],
        tags=_TAGS,
        external_docs={"description": "The model: DAT++", "url": "https://arxiv.org/abs/2309.01430"},
        routes=[_without_head(route) for route in routes],
    )
    document["security"] = [{}, {_KEY: []}]
    components = document.setdefault("components", {})
    problem = TypeAdapter(Problem).json_schema(ref_template="#/components/schemas/{model}")
    schemas = {
        **components.get("schemas", {}),
        **problem.pop("$defs"),
        Problem.__name__: problem,
        **openapi.BODY_SCHEMAS,
        **v2_openapi.DEFINITIONS,
    }
    components["schemas"] = {name: _plain(schemas[name]) for name in sorted(schemas)}
    components["headers"] = {**openapi.HEADERS, **v2_openapi.HEADERS}
    components["parameters"] = {openapi.REQUEST_ID["name"]: openapi.REQUEST_ID, **v2_openapi.PARAMETERS}
    components["requestBodies"] = dict(openapi.REQUEST_BODIES)
    components["securitySchemes"] = {
        _KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "Where the server has API keys: one of them. Others ask for none.",
        }
    }
    for operation in operations(document):
        _complete(operation)
    components["responses"] = _shared_errors(document)
    return document


def _without_head(route: BaseRoute) -> BaseRoute:
    """Return a route without HEAD, which is GET's and needs no words of its own."""
    if isinstance(route, APIRoute):
        route = copy(route)
        route.methods = (route.methods or set()) - {"HEAD"}
    return route


def operations(document: Json) -> Iterator[Json]:
    """Yield every operation of a document."""
    for item in document["paths"].values():
        yield from item.values()


def _complete(operation: Json) -> None:
    """Add to an operation what all have in common, and its example."""
    name = openapi.REQUEST_ID["name"]
    parameters = [_parameter(parameter) for parameter in operation.get("parameters", ())]
    operation["parameters"] = [*parameters, {"$ref": f"#/components/parameters/{name}"}]
    if _UNAUTHORIZED not in operation["responses"]:
        operation["security"] = []
    for response in operation["responses"].values():
        response["headers"] = {**openapi.header_refs(name), **response.get("headers", {})}
        for content in response.get("content", {}).values():
            content["schema"] = _plain(content["schema"])
    answer = operation["responses"]["200"].get("content", {})
    if operation["operationId"] in ANSWERS:
        next(iter(answer.values()))["example"] = ANSWERS[operation["operationId"]]


def _parameter(parameter: Json) -> Json:
    """Return a parameter with a schema that has no null, which a query cannot say, and no description once more."""
    if "$ref" in parameter:
        return parameter
    if parameter["in"] == "path":
        parameter = {**parameter, **_PATH_PARAMETERS[parameter["name"]]}
    schema = {key: value for key, value in _plain(parameter["schema"]).items() if key != "description"}
    if "anyOf" in schema:
        (kind,) = (choice for choice in schema.pop("anyOf") if choice != {"type": "null"})
        schema |= kind
    return {**parameter, "schema": schema}


def _plain(schema: Any) -> Any:
    """Return a schema without the titles that are made from names, and without defaults of null."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain: Json = {}
    for key, value in schema.items():
        if key == "properties":
            plain[key] = {name: _plain(each) for name, each in value.items()}
        elif key in ("example", "examples", "default", "enum", "const"):
            if (key, value) != ("default", None):
                plain[key] = value
        elif key != "title":
            plain[key] = _plain(value)
    return plain


def _shared_errors(document: Json) -> Json:
    """Take errors out of the operations, which then refer to them, and return them by their names."""
    shared: Json = {}
    for operation in operations(document):
        responses = operation["responses"]
        for status, response in responses.items():
            if int(status) >= 400:
                name = f"{'Problem' if MEDIA_TYPE in response['content'] else 'ProtocolError'}{status}"
                if shared.setdefault(name, response) == response:
                    responses[status] = {"$ref": f"#/components/responses/{name}"}
    return {name: shared[name] for name in sorted(shared)}
