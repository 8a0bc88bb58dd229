"""Which tensors of a file are a model's: those with its names, wherever they lie and whatever stands before them.

    entries_of(content)          the object in a weight file -> its tensors, each with the path to it
    find_sets(entries, names)    -> sets of tensors under names of the model, by the prefix that they share

A path joins the keys of the containers with the tensor's own name by dots, so that containers ("state_dict") and
wrappers ("module._orig_mod.") are one prefix. No list of either is kept: a prefix is what is left of a path when the
name that the model has is taken off its end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.pickled import Array, Foreign, View
from models.weight_files import CheckpointError

_MAX_DEPTH: Final = 64
_MAX_ENTRIES: Final = 1_000_000
_MODULE_PARTS: Final = ("_parameters", "_buffers", "_modules")
"""Of a pickled module: what it keeps its tensors and modules in, which are no part of their names."""
_AVERAGED: Final = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?=[._\d]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a file that may be a tensor: its path, the number of the container that it lies in, itself."""

    path: str
    container: int
    value: Any


@dataclass(frozen=True, slots=True)
class WeightSet:
    """Tensors that share a prefix: by the names of the model, and what lies beside them under other names."""

    prefix: str
    """What stands before every name, up to and with the last dot; may be empty."""
    weights: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The prefix as it is written for people."""
        return self.prefix.rstrip(".")

    @property
    def is_averaged(self) -> bool:
        """Whether its prefix says that it is a moving average of other weights."""
        return _AVERAGED.search(self.key) is not None


def entries_of(content: Any) -> list[Entry]:
    """Return the tensors in nested containers; CheckpointError for nesting that no weight file has."""
    entries: list[Entry] = []
    # Each item: a container, its path with a dot behind, and the containers around it, for one may hold itself.
    pending: list[tuple[Any, str, tuple[int, ...]]] = [(content, "", ())]
    numbers = 0
    while pending:
        node, path, around = pending.pop()
        if id(node) in around:
            continue
        numbers += 1
        for key, value, is_named in _children(node):
            child = f"{path}{key}" if is_named else path.removesuffix(".")
            if isinstance(value, View):
                entries.append(Entry(child, numbers, value.tensor))
            elif isinstance(value, (Tensor, Array, np.ndarray, Foreign)):
                entries.append(Entry(child, numbers, value))
            if isinstance(value, (dict, list, tuple, Foreign)):
                pending.append((value, f"{child}." if child else "", (*around, id(node))))
        if len(around) > _MAX_DEPTH or len(pending) + len(entries) > _MAX_ENTRIES:
            raise CheckpointError("containers within containers without end, unlike any weight file")
    return entries


def _children(node: Any) -> Iterator[tuple[Any, Any, bool]]:
    """Yield what lies in a container: its key, itself, and whether the key is a part of the names below."""
    if isinstance(node, dict):
        yield from ((key, value, True) for key, value in dict.items(node))
    elif isinstance(node, (list, tuple)):
        yield from ((index, value, True) for index, value in enumerate(node))
    elif isinstance(node, Foreign):
        yield from ((index, value, True) for index, value in enumerate(node.arguments))
        yield from ((key, value, True) for key, value in node.entries.items())
        for state in node.state if isinstance(node.state, tuple) else (node.state,):
            if isinstance(state, dict):
                yield from ((key, value, key not in _MODULE_PARTS) for key, value in dict.items(state))


def find_sets(entries: Sequence[Entry], names: Collection[str]) -> list[WeightSet]:
    """Return the sets of tensors that have names of the model, those with the most of them first."""
    sets: dict[str, WeightSet] = {}
    containers: defaultdict[str, set[int]] = defaultdict(set)
    for entry in entries:
        for start in _starts(entry.path):
            prefix, name = entry.path[:start], entry.path[start:]
            if name in names:
                sets.setdefault(prefix, WeightSet(prefix)).weights[name] = entry.value
                containers[prefix].add(entry.container)
    for prefix, found in sets.items():
        for entry in entries:
            if entry.container in containers[prefix] and entry.path.startswith(prefix):
                name = entry.path[len(prefix) :]
                if name not in names and not isinstance(entry.value, Foreign):
                    found.beside[name] = entry.value
    return sorted(sets.values(), key=lambda each: -len(each.weights))


def _starts(path: str) -> Iterator[int]:
    """Yield the places in a path where a name may begin."""
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", path))


def under_key(sets: Sequence[WeightSet], key: str) -> list[WeightSet]:
    """Return the sets that lie under a key, which is a prefix or the beginning of one."""
    return [each for each in sets if f"{each.key}.".startswith(f"{key.rstrip('.')}.")]


def are_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tell whether two sets hold the same numbers."""
    return first.keys() == second.keys() and all(
        left is right or torch.equal(as_tensor(left), as_tensor(right))
        for left, right in ((first[name], second[name]) for name in first)
    )


def is_tensor(value: Foreign) -> bool:
    """Tell whether a stand-in is in place of a tensor, of a kind that is not made: a quantised one, say."""
    return value.qualified_name.startswith("torch._utils._rebuild_")


def as_tensor(value: Any) -> Tensor:
    """Return an entry's value as a tensor of its own type; TypeError that says what it is where it holds no numbers."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Array) and value.values is not None:
        value = value.values
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, Foreign):
        raise TypeError(f"a {value.qualified_name}")
    raise TypeError("an array of other things than numbers")
