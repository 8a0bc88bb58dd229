"""Every way a request or the service can fail, as one tree without HTTP in it.

    ServiceError
    ├── RequestError              the caller can mend it; abstract
    │   ├── MalformedRequest      the body or its framing cannot be read
    │   │   └── ReceiveTimeout    the head or body did not arrive in time
    │   ├── Unauthorized          no valid API key
    │   ├── Forbidden             a valid API key that may not do this
    │   ├── UnknownModel          no model of that name is served
    │   ├── LoadFailed            a model that cannot be served; what was served still is
    │   ├── ExplainUnavailable    the model served cannot say where it looked
    │   ├── UnsupportedMediaType  a content type that is not taken
    │   ├── NotAcceptable         no representation that the caller accepts
    │   ├── TooLarge              more bytes or images than a request may carry
    │   ├── InvalidParameter      a query parameter or header out of its domain
    │   └── BadImages             one or more images at fault, each with its own ImageFault
    ├── Overloaded                the queue is full; carries when to come back
    │   ├── RateLimited           an API key's requests come faster than it may send them
    │   └── ConcurrencyLimited    an API key has as many requests in flight as it may
    ├── NotReady                  loading, draining, or without a living engine
    ├── DeadlineExceeded          the answer would come too late
    ├── Cancelled                 the caller went away; nobody is told
    ├── InferenceFailed           the engine failed on this batch; the fault is ours
    └── StartupError              the service cannot start as asked
        ├── SettingsError         an unknown or bad setting
        ├── RepositoryError       no usable model directory
        │   ├── IncompleteModel   files of it are missing or short, as while they are copied
        │   └── RemoteFailed      what lies elsewhere cannot be read, for now or for good
        └── DeviceUnavailable     the device asked for cannot be had

`code` is the stable machine-readable name that users see; `service.http.problems` alone maps the tree to HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


class ServiceError(Exception):
    """Base of all expected failures; `str(error)` is a sentence fit for the caller."""

    code: ClassVar[str] = "internal"


class RequestError(ServiceError):
    """The request is at fault and would fail again unchanged; raised only as one of its kinds."""


class MalformedRequest(RequestError):
    """The body or its framing cannot be read."""

    code = "malformed_request"


class ReceiveTimeout(MalformedRequest):
    """The head of the request, or its body, did not arrive within the time allowed."""

    code = "receive_timeout"


class Unauthorized(RequestError):
    """API keys are configured and none, or a wrong one, was sent."""

    code = "unauthorized"


class Forbidden(RequestError):
    """The API key is valid, and may not do this; or nobody may, as the service is set."""

    code = "forbidden"


class UnknownModel(RequestError):
    """No model of that name is served."""

    code = "unknown_model"


class LoadFailed(RequestError):
    """A model that was to be loaded cannot be served; whatever was served before still is."""

    code = "load_failed"


class ExplainUnavailable(RequestError):
    """The model is served without the graph that says where it looked."""

    code = "explain_unavailable"


class UnsupportedMediaType(RequestError):
    """The body's content type is not one that carries images here."""

    code = "unsupported_media_type"

    def __init__(self, detail: str, *, accept_encoding: str = "identity") -> None:
        super().__init__(detail)
        self.accept_encoding = accept_encoding


class NotAcceptable(RequestError):
    """None of the media types in Accept can be produced."""

    code = "not_acceptable"


class TooLarge(RequestError):
    """More bytes, or more images, than one request may carry."""

    code = "too_large"


class InvalidParameter(RequestError):
    """A parameter is outside its domain; the message names it and the domain."""

    code = "invalid_parameter"


@dataclass(frozen=True, slots=True)
class ImageFault:
    """Why one image cannot be used, or has no answer: a stable code, and a sentence for people."""

    code: str
    detail: str


class BadImages(RequestError):
    """One or more images cannot be used; nothing was inferred."""

    code = "bad_image"

    def __init__(self, faults: Mapping[int, ImageFault]) -> None:
        self.faults = {index: faults[index] for index in sorted(faults)}
        """By the image's index in the request, in order."""
        super().__init__(f"{len(faults)} of the images cannot be used (index {', '.join(map(str, self.faults))}).")


class Overloaded(ServiceError):
    """No room in the queue; `retry_after_s` says when there should be."""

    code = "overloaded"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """The API key's requests come faster than it may send them; `retry_after_s` says when one would be taken."""

    code = "rate_limited"


class ConcurrencyLimited(Overloaded):
    """The API key has as many requests in flight as it may; one is taken when another has ended."""

    code = "concurrency_limited"


class NotReady(ServiceError):
    """The service is loading, draining, or its engine is not alive."""

    code = "not_ready"


class DeadlineExceeded(ServiceError):
    """The deadline passed before the answer was there; the work was dropped if it had not begun."""

    code = "deadline_exceeded"


class Cancelled(ServiceError):
    """The caller went away; its work is dropped without an answer."""

    code = "cancelled"


class InferenceFailed(ServiceError):
    """The engine failed on the batch that this image was in; the details are in the log only."""

    code = "inference_failed"


class StartupError(ServiceError):
    """The service cannot start as asked."""

    code = "startup"


class SettingsError(StartupError):
    """An unknown setting, or a value outside its domain."""

    code = "settings"


class RepositoryError(StartupError):
    """A model directory is missing, incomplete, or does not match its manifest."""

    code = "repository"


class IncompleteModel(RepositoryError):
    """Files of a model directory are missing or shorter than its manifest says, as while they are being copied."""


class RemoteFailed(RepositoryError):
    """What lies elsewhere cannot be read: it is not reached, refuses, or breaks off."""


class DeviceUnavailable(StartupError):
    """The device asked for cannot be had; there is no silent fall-back."""

    code = "device_unavailable"
