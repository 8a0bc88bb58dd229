"""Where a model's nodes run: read from the runtime's profile of one run, and judged.

The profile is taken and not the runtime's list of assignments, because it alone says what type of data each node
made: a graph with an open batch computes shapes on the CPU, rightly, with the same operators (Concat, Mul, Reshape)
that compute the model. Nodes that give integers or booleans alone count as such arithmetic, all others as compute.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.engine.runtime.options import PROVIDERS, Device
from service.errors import DeviceUnavailable

_log = logging.getLogger(__name__)

_KERNEL = "_kernel_time"
_ARITHMETIC_TYPES = frozenset({"int64", "int32", "bool"})
_NAMED_AT_MOST = 12


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node that ran: its name, its operator, the provider that ran it, and the types of what it gave."""

    name: str
    operator: str
    provider: str
    output_types: frozenset[str]

    @property
    def is_compute(self) -> bool:
        """Whether it computes the model, rather than shapes or copies between devices."""
        return not self.operator.startswith("Memcpy") and not (
            self.output_types and self.output_types <= _ARITHMETIC_TYPES
        )


def placed_nodes(events: Iterable[Mapping[str, Any]]) -> list[PlacedNode]:
    """Return the nodes of a profile, as the runtime writes it; each once, however often it ran."""
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]
    nodes = {
        event["name"]: PlacedNode(
            event["name"].removesuffix(_KERNEL),
            event["args"]["op_name"],
            event["args"]["provider"],
            frozenset(kind for output in event["args"]["output_type_shape"] for kind in output),
        )
        for event in kernels
    }
    return list(nodes.values())


def check_placement(model: str, nodes: Sequence[PlacedNode], device: Device, *, strict: bool) -> None:
    """Raise DeviceUnavailable where the device does none of a model's computing, or `strict` and not all of it.

    What is left to the CPU is otherwise named in a warning: it is right, and slow.
    """
    own = {device.provider.name, *(PROVIDERS[kind].name for kind in device.provider.helpers)}
    compute = [node for node in nodes if node.is_compute]
    left = [node for node in compute if node.provider not in own]
    if len(left) == len(compute):
        raise DeviceUnavailable(f"{device} takes none of the {len(compute)} compute nodes of {model}.")
    if not left:
        return
    names = ", ".join(f"{node.operator} ({node.name})" for node in left[:_NAMED_AT_MOST])
    more = f" and {len(left) - _NAMED_AT_MOST} more" if len(left) > _NAMED_AT_MOST else ""
    found = f"{device} leaves {len(left)} of the {len(compute)} compute nodes of {model} to the CPU: {names}{more}."
    if strict:
        raise DeviceUnavailable(f"{found} Without strict_device they would run there, slowly.")
    _log.warning("%s", found)
