"""The routes of the inference calls: documented by FastAPI, entered and resolved directly.

For every request FastAPI finds the route among all others, enters half a dozen layers and walks the endpoint's
dependencies anew, which would cost more than all the rest of an answer but the model. An endpoint of a `DirectRoute`
declares its dependencies as any other does, for the documentation; there are always the same three (the request, the
service, the query's parameters), and here they are made directly, with the same checks and the same errors.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import lru_cache
from typing import Any, TypeVar, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.authorization import authorize
from service.http.context import context_of
from service.http.parameters import CallParameters
from service.http.root_path import path_below_root
from service.http.service import Service, service_of

ParametersT = TypeVar("ParametersT", bound=CallParameters)


class DirectRoute(APIRoute):
    """A route whose endpoint takes `request`, `service` and `parameters` (CallParameters of a kind)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what both ShortWay and FastAPI's router call to answer a request."""
        endpoint = self.endpoint
        taken, expected = set(inspect.signature(endpoint).parameters), {"request", "service", "parameters"}
        if taken != expected:
            raise TypeError(f"{endpoint.__name__} takes {sorted(taken)}, not {sorted(expected)}")
        kind = get_type_hints(endpoint)["parameters"]

        async def answer(request: Request) -> Response:
            service = service_of(request)
            authorize(request, service)
            parameters = parsed(kind, request.scope["query_string"])
            set_deadline(request, service, parameters)
            response: Response = await endpoint(request=request, service=service, parameters=parameters)
            return response

        return answer


def set_deadline(request: Request, service: Service, parameters: CallParameters) -> None:
    """Have a request answered within the time that its parameters give, and the server's own."""
    longest_ms = service.settings.timeout_ms
    context_of(request).answer_within(min(parameters.timeout_ms or longest_ms, longest_ms))


class ShortWay:
    """Leads requests for DirectRoutes straight to them, past all the layers of `stack`, and all others through it.

    `surround` wraps each entrance in the middleware, which no request may skip.
    """

    def __init__(self, app: FastAPI, stack: ASGIApp, *, surround: Callable[[ASGIApp], ASGIApp]) -> None:
        self._stack = stack
        self._fixed: dict[tuple[str, str], ASGIApp] = {}
        self._named: list[tuple[re.Pattern[str], Collection[str], ASGIApp]] = []
        for route in app.routes:
            if isinstance(route, DirectRoute):
                entrance, methods = surround(_Entrance(route)), route.methods or set()
                if route.param_convertors:
                    self._named.append((route.path_regex, methods, entrance))
                else:
                    self._fixed |= {(method, route.path): entrance for method in methods}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or go through the application's life."""
        entrance = self._entrance(scope) if scope["type"] == "http" else None
        await (entrance or self._stack)(scope, receive, send)

    def _entrance(self, scope: Scope) -> ASGIApp | None:
        """Return where a request enters, None where it takes no DirectRoute; note what its path names."""
        method, path = scope["method"], path_below_root(scope)
        if (entrance := self._fixed.get((method, path))) is not None:
            scope["path_params"] = {}
            return entrance
        for pattern, methods, entrance in self._named:
            if method in methods and (found := pattern.match(path)):
                scope["path_params"] = found.groupdict()
                return entrance
        return None


class _Entrance:
    def __init__(self, route: DirectRoute) -> None:
        self._route = route
        self._answer = route.get_route_handler()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._route
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)


@lru_cache(maxsize=256)
def parsed(kind: type[CallParameters], query: bytes) -> CallParameters:
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
    return checked(kind, values)


def checked(kind: type[ParametersT], values: Mapping[str, Any]) -> ParametersT:
    """Return parameters by their names; raises RequestValidationError that names each wrong one."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [{**problem, "loc": ("query", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems) from error
