"""The documents of the Open Inference Protocol, as they are read, answered and described."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, FailFast, Field, WithJsonSchema, with_config
from typing_extensions import TypeAliasType, TypedDict

ProtocolParameters = TypeAliasType(
    "ProtocolParameters", Annotated[dict[str, Any], Field(description="Values by their names.")]
)
ModelConfiguration = TypeAliasType(
    "ModelConfiguration",
    Annotated[dict[str, Any], Field(description="What Triton's model_config.proto has, by its names.")],
)

_FEW = Field(max_length=64)
"""More tensors than any request has: a body has room for millions of them, which would fill the memory first."""


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", use_attribute_docstrings=True)


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class InferInput(_Read):
    """One input tensor of a request; its values are in `data`, or behind the JSON where `binary_data_size` is given."""

    name: str
    """`image`, the only input there is."""
    shape: Annotated[list[int], FailFast()]
    """Batch first: [batch, height, width, 3] of pixels, or [batch] or [batch, 1] of image files."""
    datatype: str
    """`UINT8`, `FP32` or `FP16` pixels, or `BYTES` that hold image files."""
    parameters: ProtocolParameters | None = None
    """`binary_data_size`: how many bytes behind the JSON are this tensor's."""
    data: Any = None
    """The values, flat or nested, row-major; files as base64, in every form that `/v1` takes."""


class RequestedOutput(_Read):
    """One output that is asked for."""

    name: str
    """Name of the output: `logits`, `embedding`, `stage1` and so on."""
    parameters: ProtocolParameters | None = None
    """`binary_data`: answer behind the JSON. `classification`: how many of the highest values to answer, as text
    `value:index:label`, in place of all. `datatype`: `FP32`, the default, or `FP16`."""


class InferRequest(_Read):
    """What is to be inferred."""

    id: str | None = None
    """Any name for the request; the answer repeats it."""
    parameters: ProtocolParameters | None = None
    """`timeout` in microseconds, `priority` (1 before 2; 0 is the default, 1), `binary_data_output`: answer every
    output behind the JSON that does not say itself, and `size` of image files, as under `/v1`. Others are passed
    over."""
    inputs: Annotated[list[InferInput], FailFast(), _FEW]
    """Exactly one: `image`."""
    outputs: Annotated[list[RequestedOutput] | None, FailFast(), _FEW] = None
    """What to answer; left out, the outputs that the model's metadata names."""


@with_config(use_attribute_docstrings=True)
class InferOutput(TypedDict):
    """One output of an answer."""

    name: str
    """Name of the output."""
    datatype: Literal["FP32", "FP16", "BYTES"]
    """Type of the values; `BYTES` under `classification`."""
    shape: list[int]
    """Batch first."""
    parameters: NotRequired[ProtocolParameters]
    """`binary_data_size`: how many bytes behind the JSON are this tensor's."""
    data: NotRequired[Annotated[Any, WithJsonSchema({"items": {}, "type": "array"})]]
    """The values, flat and row-major, where they are not behind the JSON."""


@with_config(use_attribute_docstrings=True)
class InferResponse(TypedDict):
    """The outputs of a request."""

    id: NotRequired[str]
    """The request's own, where it had one."""
    model_name: str
    """Name of the model that answered."""
    model_version: str
    """Its version."""
    outputs: list[InferOutput]
    """The outputs asked for, in that order."""


class ServerMetadata(_Written):
    """What the server is."""

    name: str
    """Name of the server."""
    version: str
    """Version of the server."""
    extensions: list[str]
    """The extensions of the protocol that it has."""


class TensorMetadata(_Written):
    """One input or output of a model."""

    name: str
    """Name of the tensor."""
    datatype: str
    """Type of its values."""
    shape: list[int]
    """Its shape, batch first; -1 for what varies."""


class ModelMetadata(_Written):
    """What a model takes and gives."""

    name: str
    """Name of the model."""
    versions: list[str]
    """The versions that are served."""
    platform: str
    """What runs it."""
    inputs: list[TensorMetadata]
    """Its inputs."""
    outputs: list[TensorMetadata]
    """What a request gets that asks for nothing by name."""


class Live(_Written):
    """The process can answer."""

    live: bool


class Ready(_Written):
    """A request would be answered."""

    ready: bool


class ModelReady(_Written):
    """A request for this model would be answered."""

    name: str
    """Name of the model."""
    ready: bool


class Duration(_Written):
    """How often something happened and how long it took in all."""

    count: int
    """How often."""
    ns: int
    """How long in all, in nanoseconds."""


class InferenceStatistics(_Written):
    """Where the requests' time went; `count` counts requests, and of a request's images the slowest is counted."""

    success: Duration
    """Requests that were answered, from arrival to answer."""
    fail: Duration
    """Requests that were not."""
    queue: Duration
    """Waiting for the device."""
    compute_input: Duration
    """Decoding, resizing and copying images."""
    compute_infer: Duration
    """Running the model."""
    compute_output: Duration
    """From the model's outputs to the answer's."""
    cache_hit: Duration
    """Images whose answers were kept, not requests; the time is not measured, 0."""
    cache_miss: Duration
    """Images that were looked for among the answers that are kept, and not found; likewise."""


class BatchStatistics(_Written):
    """The runs of one padded batch size."""

    batch_size: int
    """Images that the runs had room for."""
    compute_input: Duration
    """Not timed apart from the run: 0 ns."""
    compute_infer: Duration
    """Runs of the model."""
    compute_output: Duration
    """Not timed apart from the run: 0 ns."""


class ModelStatistics(_Written):
    """What a version of a model has done since the service started, for `/v1` and `/v2`, in all processes."""

    name: str
    """Name of the model."""
    version: str
    """Its version."""
    last_inference: int
    """When the model last ran, in milliseconds since 1970; 0 where it never has."""
    inference_count: int
    """Images that the model was run on."""
    execution_count: int
    """Runs of the model."""
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]
    """The runs by padded batch size."""


class Statistics(_Written):
    """The statistics of every version asked about."""

    model_stats: list[ModelStatistics]


class IndexRequest(_Read):
    """Which models to list."""

    ready: bool = False
    """Only those that would answer."""


IndexState = TypeAliasType(
    "IndexState",
    Annotated[
        Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"],
        Field(description="A version's state, as Triton has it."),
    ],
)


class IndexEntry(_Written):
    """One version of a model that is served, or was to be."""

    name: str
    """Name of the model."""
    version: str
    """Its version."""
    state: IndexState
    """Whether it would answer, will soon, or is finishing what it has."""
    reason: str
    """Why it would not answer, where it would not."""


class RepositoryRequest(_Read):
    """What goes with a wish to load or unload."""

    parameters: ProtocolParameters | None = None
    """To unload takes `unload_dependents`, which changes nothing: no model depends on another. To load takes none: a
    model is served as it was exported."""


class ProtocolError(_Written):
    """Why a request was not answered."""

    error: str
    """A sentence for people."""
