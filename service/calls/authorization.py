"""The question that comes before all others: may the caller ask?"""

from __future__ import annotations

from service.access.keys import find_key
from service.calls.context import RequestContext
from service.calls.parts import Parts
from service.errors import Forbidden
from service.serving.control import ModelControl


def authorize(context: RequestContext, parts: Parts) -> None:
    """Let a call pass where no API keys are configured, or it bears one that may ask now; once, before its body.

    From here to the call's end it counts among the key's. Raises Unauthorized, RateLimited or ConcurrencyLimited.
    """
    keys = parts.settings.api_keys
    if not keys:
        return
    place = find_key(keys, context.headers.get("authorization", ""))
    context.key = keys[place]
    context.at_end = parts.key_limits.begin(place)


def authorized_control(context: RequestContext, parts: Parts) -> ModelControl:
    """Return what loads and unloads models, to a call that was authorized and may have it done.

    Raises Forbidden where the service does not allow it at all, or not to the key that the call bears.
    """
    if parts.control is None:
        raise Forbidden("--model-control is off: this server loads and unloads nothing while it runs.")
    key = context.key
    if key is not None and key.role != "admin":
        raise Forbidden(f"The API key {key.name!r} is of a user; only one with role=admin may load and unload models.")
    return parts.control
