"""The only mapping from `service.errors` to gRPC's statuses.

Beside its code and sentence a failure says its stable name (`ErrorInfo.reason`, the same as HTTP's `code`), and where
it is worth asking again, when: in `RetryInfo`, and in the metadata by which clients with a retry policy go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from grpc import StatusCode

from service import errors
from service.errors import BadImages, Overloaded, ServiceError
from service.grpc.messages import ErrorInfo, RetryInfo, Status

DOMAIN = "dat-serve"
NOT_READY_RETRY_AFTER_S = 5
PUSHBACK = "grpc-retry-pushback-ms"
DETAILS = "grpc-status-details-bin"

CODES: Mapping[type[ServiceError], StatusCode] = {
    errors.ServiceError: StatusCode.INTERNAL,
    errors.RequestError: StatusCode.INVALID_ARGUMENT,
    errors.ReceiveTimeout: StatusCode.DEADLINE_EXCEEDED,
    errors.Unauthorized: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.UnknownModel: StatusCode.NOT_FOUND,
    errors.LoadFailed: StatusCode.FAILED_PRECONDITION,
    errors.ExplainUnavailable: StatusCode.UNIMPLEMENTED,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: StatusCode.CANCELLED,
}
"""By the most specific class that is here."""

HTTP_STATUSES: Mapping[StatusCode, int] = {
    StatusCode.OK: 200,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.INTERNAL: 500,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
"""What each is in HTTP (google/rpc/code.proto), so that log and metrics have one kind of number."""

_HIDDEN = (errors.StartupError,)
"""Errors whose message is for the operator alone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call fails."""

    status: StatusCode
    reason: str
    """The stable name."""
    detail: str
    """A sentence for people."""
    retry_after_s: float | None = None

    def metadata(self) -> list[tuple[str, str | bytes]]:
        """Return what goes behind the call beside its status."""
        status = Status(code=self.status.value[0], message=self.detail)
        status.details.add().Pack(ErrorInfo(reason=self.reason, domain=DOMAIN), type_url_prefix="type.googleapis.com/")
        more: list[tuple[str, str | bytes]] = []
        if self.retry_after_s is not None:
            info = RetryInfo()
            info.retry_delay.FromNanoseconds(round(self.retry_after_s * 1e9))
            status.details.add().Pack(info, type_url_prefix="type.googleapis.com/")
            more.append((PUSHBACK, str(math.ceil(self.retry_after_s * 1000))))
        return [*more, (DETAILS, status.SerializeToString())]


INTERNAL = Failure(StatusCode.INTERNAL, "internal", "The service failed on this request.")


def failure_of(error: ServiceError) -> Failure:
    """Return how a call fails with an error."""
    status = next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)
    detail = "The service failed." if isinstance(error, _HIDDEN) else str(error)
    if isinstance(error, BadImages):
        faults = (f"Image {index}: {fault.detail}" for index, fault in error.faults.items())
        detail = " ".join([detail, *faults])
    retry_after_s: float | None = None
    if isinstance(error, Overloaded):
        retry_after_s = error.retry_after_s
    elif isinstance(error, errors.NotReady):
        retry_after_s = NOT_READY_RETRY_AFTER_S
    return Failure(status, error.code, detail, retry_after_s)
