"""The manifest of a model directory: the whole contract between the exporter, which writes it, and the service.

Invariants: what the manifest says of an output agrees with its shape and with the input's size; the model has the
outputs that its task needs. A manifest that was written before a fact was recorded reads as one that records it: what
is missing follows here, and nowhere else, from what such manifests had.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from service.model.explain_record import ExplainRecord
from service.model.record import Record, Side

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
EXPLAIN_FILE = "explain.onnx"
FUSED_FILE = "fused.onnx"
LABELS_FILE = "labels.tsv"
EMBEDDING = "embedding"
"""The output that is a vector of features, of every model that has one."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Task = Literal["classification"]
"""What a model is for. Other tasks may follow; this service refuses all but these."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""Temperatures beyond these make every score 0 or 1, or all alike."""
_STRIDES_OF_OLDER = {"stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}
_CLASSES_OF_OLDER = "logits"
MAX_SIDE_OF_OLDER = 2048
"""The greatest side of the dynamic sizes that manifests do not tell."""


class FileRecord(Record):
    """One file of a model directory."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class InputRecord(Record):
    """The graph's one input: uint8 (batch, height, width, 3), RGB, already resized and cropped."""

    name: Literal["image"] = "image"
    dtype: Literal["uint8"] = "uint8"
    height: Side
    width: Side
    dynamic_size: bool = False
    """Whether the graph takes other heights and widths; `height` x `width` are sent where nobody asks for others."""
    size_multiple: Side = 32
    """With `dynamic_size`, other heights and widths must be multiples of this."""
    min_side: Side | None = None
    """With `dynamic_size`, the least height and width. None in older manifests, of which nothing is known below the
    shorter side that they have."""
    max_side: Side | None = None
    """With `dynamic_size`, the greatest height and width. None in older manifests, for `MAX_SIDE_OF_OLDER`."""

    @model_validator(mode="after")
    def _takes_its_own_size(self) -> InputRecord:
        if self.dynamic_size and not self._is_in_range(self.height, self.width):
            raise ValueError(f"its own size {self.height}x{self.width} is none of those that it takes")
        return self

    def _is_in_range(self, height: int, width: int) -> bool:
        least, greatest = self.sides
        return all(least <= side <= greatest and side % self.size_multiple == 0 for side in (height, width))

    @property
    def sides(self) -> tuple[int, int]:
        """The least and the greatest side of a dynamic size."""
        return self.min_side or min(self.height, self.width), self.max_side or MAX_SIDE_OF_OLDER

    def refusal(self, height: int, width: int) -> str | None:
        """Return which sizes are taken, where an image of `height` x `width` is not; None where it is."""
        if (height, width) == (self.height, self.width):
            return None
        if not self.dynamic_size:
            return f"images of {self.height}x{self.width} pixels are taken, and no others"
        if self._is_in_range(height, width):
            return None
        least, greatest = self.sides
        of = f" that are multiples of {self.size_multiple}" if self.size_multiple > 1 else ""
        return f"sides from {least} to {greatest} pixels{of} are taken"


class PreprocessRecord(Record):
    """Published preprocessing: bicubic resize to `resize`, ignoring the aspect ratio, then the centre crop.

    `mean` and `std` are per channel on the scale 0 to 1, and are applied inside the graph.
    """

    resize_height: Side
    resize_width: Side
    interpolation: Literal["bicubic"] = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class OutputRecord(Record):
    """One float32 output; `shape` is without the batch axis, None where it follows a dynamic input size."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    dtype: Literal["float32"] = "float32"
    kind: Literal["vector", "map"]
    """A vector (channels), or a map (channels, rows, columns) over the image."""
    shape: tuple[Side] | tuple[Side, Side | None, Side | None]
    stride: Side | None = None
    """Of a map: the input's pixels a cell, on each side. A cell that the image fills in part is there."""
    classes: bool = False
    """Whether the channels are the model's classes, before softmax: what has labels."""
    max_abs_difference: float = Field(ge=0)
    """Largest absolute difference to the torch model that the exporter measured."""
    reference_std: float = Field(ge=0)
    """Standard deviation of that output in the torch model, the scale to read the difference by."""
    rms_difference: float | None = Field(default=None, ge=0)
    """Root mean square of the differences to the torch model; None in older manifests."""

    @model_validator(mode="after")
    def _kind_fits_shape(self) -> OutputRecord:
        if (self.kind == "map") != (len(self.shape) == 3):
            raise ValueError(f"{self.name} is a {self.kind}, which has not the shape {self.shape}")
        if (self.kind == "map") != (self.stride is not None):
            raise ValueError(f"{self.name} is a {self.kind}: a map has a stride, and a vector none")
        return self

    def shape_at(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape, without the batch axis, for an input of that size."""
        if self.stride is None:
            return (self.shape[0],)
        return (self.shape[0], math.ceil(height / self.stride), math.ceil(width / self.stride))


class QuantizationRecord(Record):
    """What int8 changed, on images that its ranges were not taken from."""

    calibration: str
    """What the images are; never a path."""
    calibration_images: int = Field(gt=0)
    held_out_images: int = Field(gt=0)
    logits_error: float = Field(ge=0)
    """Root mean square of the logits' differences to the torch model, over their standard deviation."""
    top1_agreement: float = Field(ge=0, le=1)


class VerificationRecord(Record):
    """How the graph was compared with the torch model before it was put in place."""

    batch_sizes: tuple[Side, ...]
    provider: str
    tolerance: float = Field(gt=0)
    """Allowed difference: in fp32 the largest, as a multiple of max(1, reference_std); otherwise the root mean square,
    as a multiple of reference_std, or in int8 of max(1, reference_std)."""
    quantization: QuantizationRecord | None = None
    """For int8, whose float32 graph was verified at these batch sizes, by the tolerance of fp32, before."""


class GraphForm(enum.StrEnum):
    """The forms in which a model's own graph may be there; they compute the same."""

    STANDARD = "standard"
    FUSED = "fused"


class FusedOutputRecord(Record):
    """How far an output of `fused.onnx`, computed by the operators' reference on the CPU, is from the torch model's."""

    name: str
    max_abs_difference: float = Field(ge=0)
    rms_difference: float = Field(ge=0)


class FusedRecord(Record):
    """`fused.onnx`: what `model.onnx` computes, by operators of the domain `dat`, which a library of its own has.

    Its input and outputs are those of `model.onnx`, which serves wherever that library, or what it needs, is missing.
    """

    operators: tuple[str, ...] = Field(min_length=1)
    """Its operators of that domain, by name."""
    operators_version: int = Field(gt=0)
    """The version of the domain that they are of."""
    outputs: tuple[FusedOutputRecord, ...]


class Manifest(Record):
    """Everything the service needs to know of a model."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: int = Field(gt=0)
    task: Task = "classification"
    variant: str
    created: str
    """ISO 8601, UTC."""
    precision: Literal["fp32", "fp16", "int8"]
    opset: int
    sampling: str
    """The sampling strategy that the graph uses."""
    target: Literal["cpu", "cuda", "tensorrt"] | None = None
    """What the graph was made for; None in older manifests."""
    contrib_operators: tuple[str, ...] = ()
    """Operators in the graph that ONNX Runtime has beyond the standard; TensorRT has none of them."""
    graph_steps: tuple[str, ...] = ()
    """The steps by which the graph departs from the plain form of its target, in the exporter's names."""
    num_classes: int = Field(gt=0)
    input: InputRecord
    preprocess: PreprocessRecord
    outputs: tuple[OutputRecord, ...]
    weights_source: str
    """The file name of the weights, or the seed of random ones; never a path."""
    weights_sha256: Sha256
    files: dict[str, FileRecord]
    labels: Literal["labels.tsv"] = "labels.tsv"
    verification: VerificationRecord
    temperature: float | None = Field(default=None, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    """What the class output is divided by before softmax, so that scores are as likely as they say; the output itself
    stays as it is. None where nobody has calibrated the model."""
    explain: ExplainRecord | None = None
    """What `explain.onnx` gives; None where there is none, as in older manifests."""
    fused: FusedRecord | None = None
    """What `fused.onnx` is; None where there is none, as in older manifests."""
    exporter: dict[str, str]
    """Versions of the tools that made it."""

    @field_validator("files")
    @classmethod
    def _names_its_files(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        missing = {MODEL_FILE, LABELS_FILE} - files.keys()
        if missing:
            raise ValueError(f"no record of {', '.join(sorted(missing))}")
        for name in files:
            if not re.fullmatch(NAME_PATTERN, name) or name == MANIFEST_FILE:
                raise ValueError(f"{name!r} is not the name of a file in a model directory")
        return files

    @model_validator(mode="after")
    def _explain_has_its_file(self) -> Manifest:
        if (self.explain is not None) != (EXPLAIN_FILE in self.files):
            raise ValueError(f"explain and the record of {EXPLAIN_FILE} go together")
        return self

    @model_validator(mode="after")
    def _fused_is_the_same(self) -> Manifest:
        if (self.fused is not None) != (FUSED_FILE in self.files):
            raise ValueError(f"fused and the record of {FUSED_FILE} go together")
        if self.fused is not None and [each.name for each in self.fused.outputs] != [*self.output_names]:
            raise ValueError(f"fused: its outputs should be {', '.join(self.output_names)}, in this order")
        return self

    @model_validator(mode="after")
    def _explain_fits(self) -> Manifest:
        for layer in self.explain.layers if self.explain is not None else ():
            if layer.tells_other_sizes and layer != layer.at(self.input.height, self.input.width):
                raise ValueError(f"explain: the sizes of {layer.name} are not those that its strides make them")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> Manifest:
        if self.preprocess.resize_height < self.input.height or self.preprocess.resize_width < self.input.width:
            raise ValueError("the resized image is smaller than the input that is cropped from it")
        return self

    @field_validator("outputs", mode="before")
    @classmethod
    def _complete_older(cls, outputs: Any, info: ValidationInfo) -> Any:
        if not isinstance(outputs, list | tuple):
            return outputs
        image = info.data.get("input")  # None where that is at fault, which is then all that there is to say
        is_older = [isinstance(output, dict) and "kind" not in output for output in outputs]
        return [_with_facts(each, image) if older else each for each, older in zip(outputs, is_older, strict=True)]

    @model_validator(mode="after")
    def _outputs_fit(self) -> Manifest:
        for record in self.outputs:
            shape = record.shape_at(self.input.height, self.input.width)
            if any(side not in (None, expected) for side, expected in zip(record.shape, shape, strict=True)):
                raise ValueError(f"{record.name} has the shape {record.shape}, and its stride makes it {shape}")
            if record.classes and record.shape[0] != self.num_classes:
                raise ValueError(f"{record.name} has {record.shape[0]} channels for {self.num_classes} classes")
        if [record.kind for record in self.outputs if record.classes] != ["vector"]:
            raise ValueError("a model for classification has one output whose values are one a class, a vector")
        return self

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output that can be asked for."""
        return tuple(record.name for record in self.outputs)

    @property
    def vectors(self) -> tuple[str, ...]:
        """The outputs that are vectors, which cost nearly nothing beside each other."""
        return tuple(record.name for record in self.outputs if record.kind == "vector")

    @cached_property
    def class_output(self) -> str:
        """The output whose values are one a class."""
        return next(record.name for record in self.outputs if record.classes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every output's shape, without the batch axis, for the model's own input size."""
        return self.shapes_at(self.input.height, self.input.width)

    def shapes_at(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Return every output's shape, without the batch axis, for an input of that size."""
        return {record.name: record.shape_at(height, width) for record in self.outputs}

    def explain_shapes_at(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the outputs of `explain.onnx` for an input of that size, none where there is no such.

        Raises ValueError where the size is not the model's own and the manifest does not tell of others.
        """
        if self.explain is None:
            return {}
        is_own = (height, width) == (self.input.height, self.input.width)
        return dict(self.explain.outputs if is_own else self.explain.outputs_at(height, width))

    def output(self, name: str) -> OutputRecord:
        """Return the record of the output `name`; KeyError where there is none."""
        for record in self.outputs:
            if record.name == name:
                return record
        raise KeyError(name)


def unknown_outputs(asked: Iterable[str], known: Collection[str]) -> str | None:
    """Return what is to be said where a model's `known` outputs lack some that are asked for; None if they do not."""
    unknown = [name for name in dict.fromkeys(asked) if name not in known]
    return f"the model has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}" if unknown else None


def _with_facts(output: dict[str, Any], image: InputRecord | None) -> dict[str, Any]:
    """Return the record of an output that was written before `kind`, `stride` and `classes` were, with these."""
    name = output.get("name")
    match output.get("shape"):
        case [_, int(rows), int()] if image is not None and rows > 0:
            return {**output, "kind": "map", "stride": math.ceil(image.height / rows)}
        case [_, _, _]:
            return {**output, "kind": "map", "stride": _STRIDES_OF_OLDER.get(str(name))}
        case _:
            return {**output, "kind": "vector", "classes": name == _CLASSES_OF_OLDER}
