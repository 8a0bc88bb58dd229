"""The graphs that an engine runs, as data: what each gives, and in which batches it is run.

The sessions that run them are given to an engine apart; all processes of a service have the same graphs, in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from service.engine.types import Shape, pixels_of
from service.errors import InvalidParameter

OutputShapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shape of each output, without its batch axis."""


@dataclass(frozen=True, slots=True)
class FreeSize:
    """That a graph takes images of other shapes than the model's own, of at most `max_pixels`.

    `outputs_at` gives the outputs for a shape, in the order of the graph's own; those of one image have at most
    `max_output_bytes` in all. Which heights and widths there may be is for those to know who ask.
    """

    outputs_at: Callable[[Shape], OutputShapes]
    max_pixels: int
    max_output_bytes: int


@dataclass(frozen=True, slots=True)
class Graph:
    """What an engine runs, known by its key; a batch is of one graph.

    `outputs` has the shape of each output, which is float32, without its batch axis, for images of the model's own
    shape; `free` is None where these are all that it takes. Graphs of one engine share no output's name. `buckets`,
    ascending, are the batch sizes that it is run with. `timed` are the outputs that most calls ask for: their time is
    what a warm-up measures, since with large ones copying would pass for computing.
    """

    key: str
    outputs: OutputShapes
    buckets: tuple[int, ...]
    timed: tuple[str, ...]
    free: FreeSize | None = None

    def check_shape(self, shape: Shape, own: Shape) -> None:
        """Raise InvalidParameter unless it takes images of a shape, of a model whose own is `own`."""
        if shape == own:
            return
        if self.free is None:
            raise InvalidParameter(f"Images of {own[0]}x{own[1]} pixels are taken, not of {shape[0]}x{shape[1]}.")
        if pixels_of(shape) > self.free.max_pixels:
            raise InvalidParameter(
                f"Images of at most {self.free.max_pixels} pixels are taken; {shape[0]}x{shape[1]} has more."
            )


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


def largest_pixels(graphs: Sequence[Graph], own: Shape) -> int:
    """Return the pixels of the largest image that any of these graphs takes, of a model whose own shape is `own`."""
    return max([pixels_of(own), *(graph.free.max_pixels for graph in graphs if graph.free is not None)])
