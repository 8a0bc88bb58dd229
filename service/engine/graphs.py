"""The graphs that an engine runs, as data: what each gives, and in which batches it is run.

The sessions that run them are given to an engine apart; all processes of a service have the same graphs, in one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.errors import InvalidParameter


@dataclass(frozen=True, slots=True)
class Graph:
    """What an engine runs, known by its key; a batch is of one graph.

    `outputs` has the shape of each output, which is float32, without its batch axis; graphs of one engine share no
    output's name. `buckets`, ascending, are the batch sizes that it is run with. `timed` are the outputs that most
    calls ask for: their time is what a warm-up measures, since with large ones copying would pass for computing.
    """

    key: str
    outputs: Mapping[str, tuple[int, ...]]
    buckets: tuple[int, ...]
    timed: tuple[str, ...]


def graph_of(outputs: frozenset[str], graphs: Sequence[Graph]) -> Graph:
    """Return the graph that gives all of these outputs.

    Raises InvalidParameter where they are none, where no graph has one of them, or where they are of two graphs.
    """
    for graph in graphs:
        if outputs and outputs <= graph.outputs.keys():
            return graph
    known = ", or of ".join(", ".join(graph.outputs) for graph in graphs)
    asked = ", ".join(sorted(outputs)) or "nothing"
    raise InvalidParameter(f"The outputs of one call are some of {known}; asked for was {asked}.")
