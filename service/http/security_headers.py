"""Headers that tell browsers what they may do with an answer, and who else may read it.

Every answer has the security headers, whoever made it; one that a route has set is left as the route has it.
Cross-origin requests (CORS) are Starlette's business, and off unless origins are set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

HSTS_S = 365 * 24 * 3600
RawHeaders = list[tuple[bytes, bytes]]

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # Says what embeds an answer without asking, such as an <img> of another site; CORS, where set, is not touched.
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
)
_UNDER_TLS = ((b"strict-transport-security", b"max-age=%d" % HSTS_S),)

_READABLE = (
    "X-Request-ID", "X-Model-Name", "X-Model-Version", "X-Tensor-Shape", "X-Tensor-Dtype", "X-Image-Index",
    "Server-Timing", "Retry-After", "WWW-Authenticate", "Inference-Header-Content-Length",
)  # fmt: skip
_SENDABLE = (
    "Authorization", "X-Request-ID", "Content-Encoding", "Inference-Header-Content-Length", "traceparent",
)  # fmt: skip


class SecurityHeaders:
    """The headers of every answer of one service; `tls` says whether it is reached by https alone."""

    def __init__(self, *, tls: bool) -> None:
        self.headers = _ALWAYS + (_UNDER_TLS if tls else ())
        self._names = frozenset(name for name, _ in self.headers)

    def complete(self, headers: RawHeaders) -> None:
        """Add those that are not there; names in `headers` are lower-case, as ASGI has them."""
        present = {name for name, _ in headers}
        if present.isdisjoint(self._names):  # as nearly always
            headers.extend(self.headers)
        else:
            headers.extend(header for header in self.headers if header[0] not in present)


def cors_layer(origins: Sequence[str]) -> Callable[[ASGIApp], ASGIApp]:
    """Return what puts an application behind CORS for these origins; `*` for any, none for no layer at all.

    Keys travel in a header of the caller's own, so that no origin needs the browser's credentials.
    """
    if not origins:
        return lambda app: app
    return lambda app: CORSMiddleware(
        app,
        allow_origins=tuple(origins),
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=_SENDABLE,
        expose_headers=_READABLE,
    )
