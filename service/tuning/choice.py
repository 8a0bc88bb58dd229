"""What is chosen: values of settings over those that were given, for all models or for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Value = int | tuple[int, ...]

_NOTHING: Mapping[str, Value] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Change:
    """Settings to try at once, of one model or, where that is None, of all."""

    model: str | None
    values: Mapping[str, Value]

    def __str__(self) -> str:
        """Say it as a line of a table."""
        said = ", ".join(f"{name} {_text(value)}" for name, value in self.values.items())
        return said if self.model is None else f"{self.model}: {said}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings by their names, and those of single models; without any, the service's own defaults."""

    common: Mapping[str, Value] = field(default_factory=lambda: _NOTHING)
    models: Mapping[str, Mapping[str, Value]] = field(default_factory=lambda: MappingProxyType({}))

    def with_change(self, change: Change) -> Choice:
        """Return this choice with the change's values in place of its own."""
        if change.model is None:
            return Choice({**self.common, **change.values}, self.models)
        own = {**self.models.get(change.model, {}), **change.values}
        return Choice(self.common, {**self.models, change.model: own})

    def changes(self) -> list[Change]:
        """Return what it has of each model and of all, as changes from the defaults."""
        whole = [*self.models.items(), (None, self.common)]
        return [Change(model, values) for model, values in whole if values]

    def __str__(self) -> str:
        """Say it in one line."""
        return "; ".join(map(str, self.changes())) or "the defaults"


def _text(value: Value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
