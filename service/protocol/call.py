"""What a request of the protocol asks for, in whatever coding it came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from service.calls.inference import ImageSource
from service.engine.types import Priority
from service.errors import MalformedRequest
from service.model.manifest import Manifest, OutputRecord, unknown_outputs
from service.protocol.images import BYTES, INPUT, ImageLimits, check_input
from service.protocol.schemas import InferInput, InferRequest, ProtocolParameters, RequestedOutput
from service.serving.served import Served
from service.settings import Settings

PRIORITIES = {0: Priority.INTERACTIVE, 1: Priority.INTERACTIVE, 2: Priority.BULK}
_UNSUPPORTED_PARAMETERS = ("sequence_id", "shared_memory_region")

KindT = TypeVar("KindT", int, bool)
_LONGEST_US = 2**53
"""Of whole numbers, which in JSON may have any length, the largest below which a float tells all apart."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output to answer, and how."""

    name: str
    binary: bool
    classes: int | None = None
    """How many of the highest values to answer in place of all."""
    datatype: Literal["FP32", "FP16"] = "FP32"


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks for; `timeout_s` and `priority` where its parameters say."""

    id: str | None
    images: Sequence[ImageSource]
    wanted: Sequence[Wanted]
    timeout_s: float | None = None
    priority: Priority | None = None
    size: str | None = None
    """The size that the images are to be preprocessed for, or that they have where they are pixels."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a version of a model takes and can answer."""

    image_limits: ImageLimits
    outputs: Mapping[str, OutputRecord]
    """Every output that can be asked for, by its name."""
    outputs_by_default: Sequence[str]

    @classmethod
    def by(cls, served: Served) -> Taken:
        """Return what is taken by a version."""
        manifest, settings = served.manifest, served.settings
        return cls(
            ImageLimits(served.sizes, settings.max_images),
            {record.name: record for record in manifest.outputs},
            [record.name for record in outputs_by_default(manifest, settings)],
        )

    def call(
        self,
        asked: InferRequest,
        read_images: Callable[[InferInput], Sequence[ImageSource]],
        *,
        binary_by_default: bool = False,
    ) -> Call:
        """Return what is asked for; `read_images` gives those of a tensor that was found right.

        `binary_by_default` is how outputs are answered of which the request says nothing. Raises MalformedRequest or
        TooLarge.
        """
        parameters = asked.parameters or {}
        refuse_unsupported(parameters, "The request")
        if len(asked.inputs) != 1:
            raise MalformedRequest(f"The request has {len(asked.inputs)} inputs; it takes one, {INPUT!r}.")
        refuse_unsupported(asked.inputs[0].parameters or {}, f"The input {INPUT!r}")
        check_input(asked.inputs[0], self.image_limits)
        timeout_us = parameter(parameters, "timeout", int, "The request")
        return Call(
            id=asked.id,
            images=read_images(asked.inputs[0]),
            wanted=self._wanted(asked.outputs, parameters, binary_by_default),
            timeout_s=min(timeout_us, _LONGEST_US) / 1e6 if timeout_us else None,
            size=self._size(asked.inputs[0], parameters),
            priority=_priority(parameter(parameters, "priority", int, "The request")),
        )

    def _size(self, tensor: InferInput, parameters: ProtocolParameters) -> str | None:
        """Return the size asked for of a checked tensor's files, or that of its pixels where it is not the model's own.

        Raises MalformedRequest.
        """
        size: Any = parameters.get("size")
        if tensor.datatype == BYTES:
            if size is not None and not isinstance(size, str):
                raise MalformedRequest("The request: 'size' is text, such as 384 or 480x640.")
            return size
        if size is not None:
            raise MalformedRequest("The request: 'size' is of files; pixels have the size that they are sent in.")
        _, height, width, _ = tensor.shape
        return None if (height, width) == self.image_limits.sizes.own else f"{height}x{width}"

    def _wanted(
        self, asked: Sequence[RequestedOutput] | None, parameters: ProtocolParameters, binary_by_default: bool
    ) -> list[Wanted]:
        said = parameter(parameters, "binary_data_output", bool, "The request")
        binary = binary_by_default if said is None else said
        if not asked:
            return [Wanted(name, binary) for name in self.outputs_by_default]
        names = [output.name for output in asked]
        if lacking := unknown_outputs(names, self.outputs):
            raise MalformedRequest(f"outputs: {lacking}.")
        if len(set(names)) < len(names):
            raise MalformedRequest("An output is asked for more than once.")
        return [_wanted(output, self.outputs[output.name], binary) for output in asked]


def outputs_by_default(manifest: Manifest, settings: Settings) -> Sequence[OutputRecord]:
    """Return the outputs that the metadata names and a request gets that names none: those of the settings, or all."""
    return [manifest.output(name) for name in settings.v2_outputs] or manifest.outputs


def _wanted(output: RequestedOutput, record: OutputRecord, binary_by_default: bool) -> Wanted:
    where = f"The output {output.name!r}"
    parameters = output.parameters or {}
    refuse_unsupported(parameters, where)
    binary = parameter(parameters, "binary_data", bool, where)
    classes = parameter(parameters, "classification", int, where) or None
    if classes is not None and record.kind != "vector":
        raise MalformedRequest(f"{where} is no vector; there is no classification by it.")
    datatype = parameters.get("datatype", "FP32")
    if datatype not in ("FP32", "FP16"):
        raise MalformedRequest(f"{where}: 'datatype' is FP32 or FP16, not {datatype!r}.")
    return Wanted(output.name, binary_by_default if binary is None else binary, classes, datatype)


def parameter(parameters: ProtocolParameters, name: str, kind: type[KindT], where: str) -> KindT | None:
    """Return a parameter, None where there is none; raises MalformedRequest unless it is a bool or counts something."""
    value: Any = parameters.get(name)
    if value is None:
        return None
    if type(value) is not kind or value < 0:
        raise MalformedRequest(
            f"{where}: {name!r} is {'true or false' if kind is bool else 'a whole number from 0 on'}."
        )
    return value


def _priority(level: int | None) -> Priority | None:
    if level is None:
        return None
    if level not in PRIORITIES:
        raise MalformedRequest(f"The request: 'priority' is 0, 1 or 2, not {level}.")
    return PRIORITIES[level]


def refuse_unsupported(parameters: ProtocolParameters, where: str) -> None:
    """Raise MalformedRequest where parameters want what this server does not have."""
    for name in _UNSUPPORTED_PARAMETERS:
        if parameters.get(name):
            raise MalformedRequest(f"{where}: {name!r} is of an extension that this server does not have.")
