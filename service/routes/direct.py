"""The route of the inference calls: documented by FastAPI, resolved directly.

For every request FastAPI walks an endpoint's dependencies anew, which would cost more than all the rest of an answer
but the model. An endpoint of `DirectRoute` declares its dependencies as any other does, for the documentation; there
are always the same three (the request, the service, the query's parameters), and here they are made directly, with
the same checks and the same errors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import Response

from service.routes.context import authorize, service_of
from service.routes.parameters import InferenceParameters


class DirectRoute(APIRoute):
    """A route whose endpoint takes `request`, `service`, and `parameters` of some kind of InferenceParameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what FastAPI calls in place of its own resolution."""
        endpoint = self.endpoint
        taken = set(inspect.signature(endpoint).parameters)
        if taken != {"request", "service", "parameters"}:
            raise TypeError(f"{endpoint.__name__} takes {sorted(taken)}, not request, service and parameters")
        kind = get_type_hints(endpoint)["parameters"]

        async def answer(request: Request) -> Response:
            service = service_of(request)
            authorize(request, service)
            parameters = parsed(kind, request.scope["query_string"])
            response: Response = await endpoint(request=request, service=service, parameters=parameters)
            return response

        return answer


@lru_cache(maxsize=256)
def parsed(kind: type[InferenceParameters], query: bytes) -> InferenceParameters:
    """Return the parameters in a query string; raises RequestValidationError that names each wrong one.

    Of a parameter that is given several times the last counts, unless it takes several. Most callers ask alike, and
    what was understood once is remembered.
    """
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        field = kind.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is list:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [{**problem, "loc": ("query", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems) from error
