"""Which sizes of input a model is served at: what its manifest says that its graphs take, within the settings' bound.

The memory of a run and of its outputs grows with the pixels, and where attention is among them with their square.
Nothing of that is left to whoever asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.engine.graphs import FreeSize
from service.engine.runtime.options import Device
from service.engine.types import Shape, pixels_of
from service.model.manifest import InputRecord, Manifest
from service.settings import Settings

_EXPLAIN_MOST_BYTES = 128 * 1024 * 1024
"""Outputs of where the model looked in one image: the attention of every layer, which grows with the pixels' square."""
_FLOAT_BYTES = 4

OutputsAt = Callable[[int, int], Mapping[str, tuple[int, ...]]]
"""The shapes of a graph's outputs, without a batch axis, by the height and width of an image."""


@dataclass(frozen=True, slots=True)
class InputSizes:
    """The heights and widths that are taken: those of `record`, of at most `max_pixels`, or its own alone."""

    record: InputRecord
    is_free: bool
    max_pixels: int

    @property
    def own(self) -> Shape:
        """The size where a request asks for none."""
        return self.record.height, self.record.width

    def refusal(self, shape: Shape) -> str | None:
        """Return which sizes are taken, where an image of height and width `shape` is not; None where it is."""
        if shape == self.own:
            return None
        takes = self.is_free and pixels_of(shape) <= self.max_pixels and self.record.refusal(*shape) is None
        return None if takes else self.description

    @property
    def description(self) -> str:
        """What is taken, as the rest of a sentence."""
        if not self.is_free:
            return f"images of {self.own[0]}x{self.own[1]} pixels are taken, and no others"
        least, greatest = self.record.sides
        of = f" that are multiples of {self.record.size_multiple}" if self.record.size_multiple > 1 else ""
        return f"sides from {least} to {greatest} pixels{of} are taken, and at most {self.max_pixels} pixels in all"

    def free_size(self, outputs_at: OutputsAt) -> FreeSize | None:
        """Return what the engine is told of a graph with these outputs; None where it takes its own size alone."""
        if not self.is_free:
            return None
        return FreeSize(_OfShape(outputs_at), self.max_pixels, self._most_output_bytes(outputs_at))

    def _most_output_bytes(self, outputs_at: OutputsAt) -> int:
        """Return the most that the outputs of one image can take.

        They grow with each side, and are the same for either order of the sides: the largest are among the shapes that
        no longer one of that height fits in.
        """
        least, greatest = self.record.sides
        multiple = self.record.size_multiple
        heights = range(least, min(greatest, math.isqrt(self.max_pixels)) + 1)
        longest = (
            (height, min(greatest, self.max_pixels // height) // multiple * multiple)
            for height in heights
            if height % multiple == 0
        )
        return max(bytes_of(outputs_at(*shape)) for shape in (self.own, *longest))


@dataclass(frozen=True, slots=True)
class _OfShape:
    """The shapes of outputs by one argument; such objects are equal where they say the same, and can be pickled."""

    outputs_at: OutputsAt

    def __call__(self, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        return self.outputs_at(*shape)


def sizes_of(manifest: Manifest, settings: Settings) -> InputSizes:
    """Return the sizes that the model's own graph is served at.

    TensorRT builds its engine for one range of shapes and for minutes: with it a model has its own size alone.
    """
    own = manifest.input.height * manifest.input.width
    devices = settings.devices or (settings.device,)
    builds = any(device != "auto" and Device.parse(device).kind == "tensorrt" for device in devices)
    if not manifest.input.dynamic_size or builds:
        return InputSizes(manifest.input, is_free=False, max_pixels=own)
    return InputSizes(manifest.input, is_free=True, max_pixels=max(own, settings.max_input_pixels))


def explain_sizes_of(manifest: Manifest, settings: Settings) -> InputSizes:
    """Return the sizes at which the model says where it looked: those whose attention is not too much to hand over."""
    sizes = sizes_of(manifest, settings)
    own = pixels_of(sizes.own)
    if not sizes.is_free or manifest.explain is None or not manifest.explain.tells_other_sizes:
        return InputSizes(manifest.input, is_free=False, max_pixels=own)
    outputs_at = manifest.explain_shapes_at
    least, most = min(manifest.input.sides[0], *sizes.own), math.isqrt(sizes.max_pixels)
    while least < most:  # the largest square whose outputs fit
        side = (least + most + 1) // 2
        if bytes_of(outputs_at(side, side)) <= _EXPLAIN_MOST_BYTES:
            least = side
        else:
            most = side - 1
    is_bounded = least < math.isqrt(sizes.max_pixels)
    return InputSizes(manifest.input, is_free=True, max_pixels=max(own, least**2) if is_bounded else sizes.max_pixels)


def bytes_of(outputs: Mapping[str, tuple[int, ...]]) -> int:
    """Return the bytes of outputs of these shapes, in float32."""
    return sum(map(math.prod, outputs.values())) * _FLOAT_BYTES
