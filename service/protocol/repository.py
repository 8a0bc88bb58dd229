"""The protocol's model repository: what there is, and what may be said of loading and unloading it."""

from __future__ import annotations

from service.calls.parts import Parts
from service.errors import MalformedRequest, NotReady
from service.protocol.schemas import IndexEntry, IndexState, ProtocolParameters
from service.serving.states import ModelState, VersionStatus

_STATES: dict[ModelState, tuple[IndexState, str]] = {
    ModelState.LOADING: ("LOADING", "It is being loaded."),
    ModelState.READY: ("READY", ""),
    ModelState.DRAINING: ("UNLOADING", "It finishes what it has, and takes no more."),
    ModelState.UNLOADED: ("UNAVAILABLE", "It is not loaded."),
    ModelState.FAILED: ("UNAVAILABLE", "It could not be loaded."),
}
"""The protocol's word for each state, and why it takes no work, where it does not say itself."""
_UNLOAD_DEPENDENTS = "unload_dependents"


def index(parts: Parts, *, ready: bool) -> list[IndexEntry]:
    """Return every version of every model that is served, or was to be; or those that would answer."""
    entries = [_entry(parts, status) for status in parts.models.statuses]
    return [entry for entry in entries if entry.state == "READY"] if ready else entries


def check_load(given: ProtocolParameters) -> None:
    """Raise MalformedRequest where a model is to be loaded with parameters."""
    if given:
        names = ", ".join(map(repr, given))
        raise MalformedRequest(f"A model is served as it was exported, and cannot be loaded with parameters ({names}).")


def check_unload(given: ProtocolParameters) -> None:
    """Raise MalformedRequest where a model is to be unloaded with parameters that there are not."""
    unknown = given.keys() - {_UNLOAD_DEPENDENTS}
    if unknown or not isinstance(given.get(_UNLOAD_DEPENDENTS, False), bool):
        raise MalformedRequest(f"To unload takes one parameter, {_UNLOAD_DEPENDENTS!r}, which is true or false.")


def _entry(parts: Parts, status: VersionStatus) -> IndexEntry:
    state, reason = _STATES[status.state]
    if status.state is ModelState.READY:
        try:
            parts.check_model_ready(status.name, str(status.version))
        except NotReady as error:
            state, reason = "UNAVAILABLE", str(error)
    reason = status.reason or reason
    return IndexEntry(name=status.name, version=str(status.version), state=state, reason=reason)
