"""What a manifest says of `explain.onnx`, the graph of where a model looked.

Invariant: what a layer's record says of the model's own input size is what its strides make of it, in a manifest that
was read (`Manifest` checks it, knowing the size).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pydantic import Field

from service.model.record import Record, Side


class LayerSizes(NamedTuple):
    """The sizes of one deformable attention layer, as its record has them."""

    key_rows: int
    key_columns: int
    query_rows: int
    query_columns: int


class ExplainLayerRecord(Record):
    """What the graph of `explain.onnx` gives of one deformable attention layer."""

    name: str
    """The layer's name in the network, such as `stages.2.attns.1`."""
    stage: int = Field(ge=1)
    block: int = Field(ge=1)
    """The layer's place in its stage, from 1."""
    groups: Side
    key_rows: Side
    key_columns: Side
    query_rows: Side
    """Height of the map that the layer works on: of its queries, and of what it samples."""
    query_columns: Side
    stride: Side | None = None
    """The input's pixels a cell of that map, on each side; a cell that the image fills in part is there. None in older
    manifests, as the three below: these tell nothing of other sizes than the model's own."""
    key_window: Side | None = None
    """Side of the window that moves over the map in steps of `key_stride`; each of its places has a point."""
    key_stride: int | None = Field(default=None, gt=0)
    key_padding: int | None = Field(default=None, ge=0)
    """Cells beyond the map, on each side, that the window covers."""
    position_difference: float = Field(ge=0)
    """Largest absolute difference of a position to the torch model's that the exporter measured."""
    attention_difference: float = Field(ge=0)
    """The same of the attention."""

    @property
    def points(self) -> int:
        """Sampled points of one group."""
        return self.key_rows * self.key_columns

    @property
    def tells_other_sizes(self) -> bool:
        """Whether it says what follows from another size of the input."""
        return None not in (self.stride, self.key_window, self.key_stride, self.key_padding)

    def sizes_at(self, height: int, width: int) -> LayerSizes:
        """Return the sizes of the layer for an input of that size; ValueError where they are not told."""
        stride, window, step, padding = self.stride, self.key_window, self.key_stride, self.key_padding
        if stride is None or window is None or step is None or padding is None:
            raise ValueError(f"{self.name}: the manifest does not tell what it is at another size")
        rows, columns, beyond = -(-height // stride), -(-width // stride), 2 * padding - window
        return LayerSizes((rows + beyond) // step + 1, (columns + beyond) // step + 1, rows, columns)

    def at(self, height: int, width: int) -> ExplainLayerRecord:
        """Return the record of the layer for an input of that size; ValueError where that is not told."""
        return self.model_copy(update=self.sizes_at(height, width)._asdict())


class ExplainRecord(Record):
    """`explain.onnx`: where each deformable attention layer looked. Its input is that of `model.onnx`."""

    layers: tuple[ExplainLayerRecord, ...] = Field(min_length=1)
    """In the order in which they run; sizes are those for the model's own input size."""

    @property
    def tells_other_sizes(self) -> bool:
        """Whether it says what follows from another size of the input, as newer manifests do."""
        return all(layer.tells_other_sizes for layer in self.layers)

    def at(self, height: int, width: int) -> ExplainRecord:
        """Return the record for an input of that size; raises ValueError where that is not told."""
        return self.model_copy(update={"layers": tuple(layer.at(height, width) for layer in self.layers)})

    @property
    def outputs(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Every output, float32, with its shape without the batch axis."""
        return self._outputs(
            LayerSizes(layer.key_rows, layer.key_columns, layer.query_rows, layer.query_columns)
            for layer in self.layers
        )

    def outputs_at(self, height: int, width: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return the same for an input of that size; raises ValueError where that is not told."""
        return self._outputs(layer.sizes_at(height, width) for layer in self.layers)

    def _outputs(self, sizes: Iterable[LayerSizes]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        outputs: list[tuple[str, tuple[int, ...]]] = []
        for index, (layer, size) in enumerate(zip(self.layers, sizes, strict=True)):
            points, queries = size.key_rows * size.key_columns, size.query_rows * size.query_columns
            outputs.append((position_output(index), (layer.groups, points, 2)))
            outputs.append((attention_output(index), (layer.groups, queries, points)))
        return tuple(outputs)


def position_output(layer: int) -> str:
    """Return the name of the output that holds a layer's positions, (y, x), -1 and 1 the outermost cells' centres."""
    return f"position{layer}"


def attention_output(layer: int) -> str:
    """Return the name of the output that holds the probabilities, over the points, of each of a layer's queries."""
    return f"attention{layer}"
