"""The only mapping from `service.errors`, and from the framework's own errors, to HTTP.

Every error leaves as `application/problem+json` (RFC 9457), or under `/v2` as that protocol has it. `type` is a
relative reference, `/problems/<code>` (below the root path, where the service has one), which this service answers
with the problem's description; `code` is the same stable name by itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import with_config
from starlette.exceptions import HTTPException
from starlette.responses import Response
from typing_extensions import TypedDict

from service import errors
from service.errors import BadImages, ImageFault, Overloaded, ServiceError

MEDIA_TYPE = "application/problem+json"
NOT_READY_RETRY_AFTER_S = 5
PROTOCOL_ROOT = "/v2"
"""Below it the Open Inference Protocol is spoken."""
EMBEDDINGS_PATH = "/v1/embeddings"
"""Where OpenAI's clients ask, which show of an error what is in its member `error`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: its HTTP status, its code, its title and its meaning, the same for every occurrence."""

    status: int
    code: str
    title: str
    meaning: str


def _kind(error: type[ServiceError], status: int, title: str) -> tuple[type[ServiceError], Kind]:
    return error, Kind(status, error.code, title, inspect.getdoc(error) or title)


INTERNAL = Kind(500, "internal", "Internal error", "A fault of the service's own; the log has the details.")

KINDS: Mapping[type[ServiceError], Kind] = dict(  # of all but RequestError, which is only raised as one of its kinds
    [
        (errors.ServiceError, INTERNAL),
        _kind(errors.MalformedRequest, 400, "Malformed request"),
        _kind(errors.ReceiveTimeout, 408, "Request not received in time"),
        _kind(errors.Unauthorized, 401, "Not authorized"),
        _kind(errors.Forbidden, 403, "Forbidden"),
        _kind(errors.UnknownModel, 404, "Unknown model"),
        _kind(errors.LoadFailed, 422, "Model cannot be loaded"),
        _kind(errors.ExplainUnavailable, 404, "Explanations unavailable"),
        _kind(errors.UnsupportedMediaType, 415, "Unsupported media type"),
        _kind(errors.NotAcceptable, 406, "Not acceptable"),
        _kind(errors.TooLarge, 413, "Too large"),
        _kind(errors.InvalidParameter, 422, "Invalid parameter"),
        _kind(errors.BadImages, 422, "Images cannot be used"),
        _kind(errors.Overloaded, 429, "Overloaded"),
        _kind(errors.RateLimited, 429, "Too many requests"),
        _kind(errors.ConcurrencyLimited, 429, "Too many requests at a time"),
        _kind(errors.NotReady, 503, "Not ready"),
        _kind(errors.DeadlineExceeded, 504, "Deadline exceeded"),
        # nginx's status for a client that closed the connection: nobody reads it, the log and the metrics show it.
        _kind(errors.Cancelled, 499, "Client closed request"),
        _kind(errors.InferenceFailed, 500, "Inference failed"),
        (errors.StartupError, INTERNAL),
        (errors.SettingsError, INTERNAL),
        (errors.RepositoryError, INTERNAL),
        (errors.IncompleteModel, INTERNAL),
        (errors.RemoteFailed, INTERNAL),
        (errors.DeviceUnavailable, INTERNAL),
    ]
)

FRAMEWORK_KINDS: Mapping[int, Kind] = {
    404: Kind(404, "not_found", "Not found", "There is nothing at this path."),
    405: Kind(405, "method_not_allowed", "Method not allowed", "The path does not take this method."),
}


@with_config(extra="forbid", use_attribute_docstrings=True)
@dataclass(frozen=True, slots=True)
class ImageError:
    """What is wrong with one image of a refused request."""

    index: int
    """The image's place in the request, from 0."""
    code: str
    """Stable name of the fault."""
    detail: str
    """A sentence for people."""


@with_config(extra="forbid", use_attribute_docstrings=True)
@dataclass(frozen=True, slots=True)
class OpenAIError:
    """An error once more, as OpenAI's clients read it."""

    message: str
    """What happened here, and what is wrong with each bad image."""
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    """Whose fault it is."""
    code: str
    """Stable name of the kind of problem, for programs."""
    param: None = None
    """OpenAI's name of the parameter at fault; `message` says it here."""


@with_config(use_attribute_docstrings=True)
class Problem(TypedDict):
    """An error, as RFC 9457 has it."""

    type: str
    """Reference to a description of this kind of problem."""
    title: str
    """The kind of problem, for people."""
    status: int
    """The HTTP status."""
    detail: str
    """What happened here, for people."""
    code: str
    """Stable name of the kind of problem, for programs."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    errors: NotRequired[list[ImageError]]
    """Where images are at fault: every bad one."""
    error: NotRequired[OpenAIError]
    """Under `/v1/embeddings`: the same, for OpenAI's clients."""


_HIDDEN = (errors.StartupError,)
"""Errors whose message is for the operator alone."""


def kind_of(error: ServiceError) -> Kind:
    """Return the kind of an error by its most specific class in the tree."""
    return next(KINDS[cls] for cls in type(error).__mro__ if cls in KINDS)


def all_kinds() -> dict[str, Kind]:
    """Return every kind of problem by its code."""
    return {kind.code: kind for kind in (*FRAMEWORK_KINDS.values(), *KINDS.values())}


class ProblemResponse(Response):
    """A problem document; `code` is kept for the access line and the metrics."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        kind: Kind,
        *,
        detail: str,
        request_id: str,
        faults: Mapping[int, ImageFault] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        problem = Problem(
            type=f"/problems/{kind.code}",
            title=kind.title,
            status=kind.status,
            detail=detail,
            code=kind.code,
            request_id=request_id,
        )
        errors = [ImageError(index, fault.code, fault.detail) for index, fault in (faults or {}).items()]
        if errors:
            problem["errors"] = errors
        super().__init__(orjson.dumps(problem), status_code=kind.status, headers=headers)
        self.code = kind.code
        self._problem = problem
        self._sentences = [detail, *(f"Image {error.index}: {error.detail}" for error in errors)]

    def under(self, path: str, *, root_path: str = "") -> Response:
        """Return the answer as callers of `path` expect it: itself, or `{"error": ...}` in the inference protocol.

        Where OpenAI's clients ask it has a member `error` besides, without which they would show the status alone.
        `path` is without the root path, which is what `type` begins with.
        """
        if path == PROTOCOL_ROOT or path.startswith(f"{PROTOCOL_ROOT}/"):
            return self._instead({"error": " ".join(self._sentences)}, "application/json")
        if not root_path and path != EMBEDDINGS_PATH:
            return self
        problem = self._problem.copy()
        problem["type"] = f"{root_path}{problem['type']}"
        if path == EMBEDDINGS_PATH:
            problem["error"] = self._for_openai()
        return self._instead(problem, MEDIA_TYPE)

    def _for_openai(self) -> OpenAIError:
        message = " ".join(self._sentences)
        if self.status_code == 429:
            return OpenAIError(message, "rate_limit_error", self.code)
        return OpenAIError(message, "invalid_request_error" if self.status_code < 500 else "server_error", self.code)

    def _instead(self, document: Mapping[str, Any], media_type: str) -> Response:
        """Return an answer with the same status and headers, and another body."""
        kept = [(name, value) for name, value in self.raw_headers if name not in (b"content-length", b"content-type")]
        answer = Response(orjson.dumps(document), status_code=self.status_code, media_type=media_type)
        answer.raw_headers += kept
        return answer


def problem_for(error: ServiceError, *, request_id: str) -> ProblemResponse:
    """Return the response for an expected failure."""
    kind = kind_of(error)
    headers: dict[str, str] = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, errors.NotReady):
        headers["Retry-After"] = str(NOT_READY_RETRY_AFTER_S)
    elif isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, errors.UnsupportedMediaType):
        headers["Accept-Encoding"] = error.accept_encoding
    return ProblemResponse(
        kind,
        detail="The service failed." if isinstance(error, _HIDDEN) else str(error),
        request_id=request_id,
        faults=error.faults if isinstance(error, BadImages) else None,
        headers=headers,
    )


def problem_for_http(error: HTTPException, *, request_id: str) -> ProblemResponse:
    """Return the response for an error of the framework's own: no such route, or not with that method."""
    title = error.detail or "Error"
    kind = FRAMEWORK_KINDS.get(error.status_code) or Kind(error.status_code, f"http_{error.status_code}", title, title)
    headers = dict(error.headers or {})
    if "Allow" in headers:  # in an order of its own, where the framework has that of a set
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    return ProblemResponse(kind, detail=f"{title}.", request_id=request_id, headers=headers)


def problem_for_validation(error: RequestValidationError, *, request_id: str) -> ProblemResponse:
    """Return the response for query parameters that the framework found to be outside their domains."""
    sentences = []
    for problem in error.errors():
        name = str(problem["loc"][1]) if len(problem["loc"]) > 1 else "request"
        unknown = problem["type"] == "extra_forbidden"
        sentences.append(f"{name}: {'there is no such parameter' if unknown else problem['msg']}")
    detail = "; ".join(sentences) + "."
    return problem_for(errors.InvalidParameter(detail), request_id=request_id)


def internal_problem(*, request_id: str) -> ProblemResponse:
    """Return the response for a fault of our own, without anything of its inside."""
    return ProblemResponse(INTERNAL, detail="The service failed on this request.", request_id=request_id)
