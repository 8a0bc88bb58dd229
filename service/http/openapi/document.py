"""The OpenAPI document: what FastAPI reads off the routes, completed and made plain for generators of code.

It depends on the routes alone, on no model or release, and of the settings on the root path alone, with which `servers`
says where it is: every other server publishes the same one, and the repository's `openapi.json` is it. So a key is
always described, as something that a server may want or not.

- Every operation takes `X-Request-ID`, and every response has it.
- Errors, headers and bodies that several operations have are described once, in `components`.
- A parameter may be left out, but is never null; schemas bear no titles beside their names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.routing import BaseRoute

from service.http.openapi import components as openapi
from service.http.openapi.examples import example_answers
from service.http.problems import PROTOCOL_ROOT
from service.http.routes.v2 import openapi as v2_openapi

Json = dict[str, Any]

TITLE = "DAT Serve"
INTERFACE_VERSION = "1.2.0"
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
_NAMED_IN_PATHS = {
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
    schemas = {
        **components.get("schemas", {}),
        **_schemas(*openapi.MODELS, *v2_openapi.MODELS),
        **openapi.BODY_SCHEMAS,
        **v2_openapi.SCHEMAS,
    }
    components["schemas"] = {name: _plain(schemas[name]) for name in sorted(schemas)}
    components["headers"] = {**openapi.HEADERS, **v2_openapi.HEADERS}
    components["parameters"] = {**openapi.PARAMETERS, **v2_openapi.PARAMETERS}
    components["requestBodies"] = dict(openapi.REQUEST_BODIES)
    components["securitySchemes"] = {
        _KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "Where the server has API keys: one of them. Others ask for none.",
        }
    }
    examples = example_answers()
    errors: Json = {}
    for path, item in document["paths"].items():
        for operation in item.values():
            errors |= _refer_to_errors(path, operation)
            _complete(path, operation, examples)
    components["responses"] = {name: errors[name] for name in sorted(errors)}
    return document


def _schemas(*models: type) -> Json:
    """Return the schemas of models that FastAPI does not see, and of what these refer to, by their names."""
    schemas: Json = {}
    for model in models:
        schema = TypeAdapter(model).json_schema(ref_template="#/components/schemas/{model}")
        schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
    return schemas


def _without_head(route: BaseRoute) -> BaseRoute:
    """Return a route without HEAD, which is GET's and needs no words of its own."""
    if isinstance(route, APIRoute):
        route = copy(route)
        route.methods = (route.methods or set()) - {"HEAD"}
    return route


def _refer_to_errors(path: str, operation: Json) -> Json:
    """Have an operation refer to its errors, of which routes state the status alone; return them by their names."""
    protocol = path.startswith(PROTOCOL_ROOT)
    errors: Json = {}
    for status in map(int, operation["responses"]):
        if status >= 400:
            name = f"{'ProtocolError' if protocol else 'Problem'}{status}"
            errors[name] = openapi.error(status, protocol=protocol)
            operation["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
    return errors


def _complete(path: str, operation: Json, examples: Json) -> None:
    """Add to an operation what all have in common, what its path names, and its example."""
    operation["parameters"] = [
        *(
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, **_NAMED_IN_PATHS[name]}
            for name in re.findall("{([a-z]+)}", path)
        ),
        *(_parameter(each) for each in operation.get("parameters", ()) if each.get("in") != "path"),
        {"$ref": f"#/components/parameters/{openapi.REQUEST_ID}"},
    ]
    if _UNAUTHORIZED not in operation["responses"]:
        operation["security"] = []
    response = operation["responses"]["200"]
    response["headers"] = {**openapi.header_refs(openapi.REQUEST_ID), **response.get("headers", {})}
    contents = list(response.get("content", {}).values())
    for content in contents:
        content["schema"] = _plain(content["schema"])
    if operation["operationId"] in examples:
        contents[0]["example"] = examples[operation["operationId"]]


def _parameter(parameter: Json) -> Json:
    """Return a parameter with a schema that has no null, which a query cannot say, and no description once more."""
    if "$ref" in parameter:
        return parameter
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
