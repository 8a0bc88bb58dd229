"""What answers look like: the records that the JSON of `/v1` is rendered from, and its documentation is read off.

Records are standard dataclasses, which orjson renders as they are; nothing is validated when they are made. Large
arrays are in them as JSON already, made piece by piece (`tensors.as_json`): one call for the whole of an answer would
keep the interpreter from others too long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from orjson import Fragment
from pydantic import ConfigDict, Field, GetPydanticSchema
from typing_extensions import TypeAliasType

from service.errors import ImageFault

DType = TypeAliasType("DType", Literal["float32", "float16"])
"""Type of the numbers of features."""


def described_as(kind: Any) -> GetPydanticSchema:
    """Return what has the documentation describe a value by the type that it has on the wire."""
    return GetPydanticSchema(lambda _, handler: handler(kind))


class Record:
    """What all records have in common: nothing beyond their fields, and those are described by their docstrings."""

    __slots__ = ()
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class ModelReference(Record):
    """The model that answered."""

    name: str
    """Name in the model repository."""
    version: int
    """Version in the model repository."""


@dataclass(frozen=True, slots=True)
class Timings(Record):
    """Where the time went, in milliseconds.

    `decode`, `preprocess`, `queue` and `inference` are the longest of any image of the request: images pass through
    these stages side by side. `total` is from the arrival of the headers, the body's arrival included.
    """

    decode: float
    """From the file's bytes to RGB."""
    preprocess: float
    """Resize and crop."""
    queue: float
    """Waiting for the device."""
    inference: float
    """The run of the batch that the image was in."""
    postprocess: float
    """From the model's outputs to the answer's values."""
    total: float
    """The whole request."""


FaultCode = TypeAliasType(
    "FaultCode",
    Literal[
        "empty_image", "unsupported_format", "unsupported_encoding", "undecodable", "too_many_pixels", "too_complex"
    ],
)


@dataclass(frozen=True, slots=True)
class Fault(Record):
    """What is wrong with one image."""

    code: Annotated[str, described_as(FaultCode)]
    """Stable name of the fault."""
    detail: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True)
class _ImageResult(Record):  # whose docstrings pydantic does not read for the records that inherit them
    index: Annotated[int, Field(description="The image's place in the request, from 0.")]
    filename: Annotated[str | None, Field(description="The file name of the multipart part, if it had one.")]


@dataclass(frozen=True, slots=True)
class FailedImage(_ImageResult):
    """The result of an image that could not be used, under `on_error=skip`."""

    error: Fault
    """What is wrong with it."""

    @classmethod
    def of(cls, fault: ImageFault, *, index: int, filename: str | None) -> FailedImage:
        """Return the result of an image with a fault."""
        return cls(index, filename, Fault(fault.code, fault.detail))


@dataclass(frozen=True, slots=True)
class Prediction(Record):
    """One class of an image."""

    class_id: int
    """Index of the class."""
    label: str
    """Name of the class."""
    score: float
    """Softmax probability."""


@dataclass(frozen=True, slots=True)
class ClassifiedImage(_ImageResult):
    """The result of one image."""

    predictions: list[Prediction]
    """The most likely classes, highest score first."""


ClassifyResult = TypeAliasType(
    "ClassifyResult",
    Annotated[ClassifiedImage | FailedImage, Field(description="What became of one image; a bad one has `error`.")],
)


@dataclass(frozen=True, slots=True)
class ClassifyResponse(Record):
    """The classes of every image of a request."""

    model: ModelReference
    results: list[ClassifyResult]
    """One result an image, in the request's order; `error` in place of `predictions` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


@dataclass(frozen=True, slots=True)
class EncodedTensor(Record):
    """One output under `encoding=base64`."""

    dtype: Annotated[str, described_as(DType)]
    """Type of the numbers."""
    shape: list[int]
    """Shape, without a batch axis."""
    data: str
    """Base64 of the little-endian bytes, row-major."""


FeatureVector = TypeAliasType(
    "FeatureVector", Annotated[list[float], Field(description="`embedding` or `logits`: (channels) or (classes).")]
)
FeatureMap = TypeAliasType(
    "FeatureMap", Annotated[list[list[list[float]]], Field(description="A stage's output: (channels, rows, columns).")]
)
FeatureTensor = TypeAliasType(
    "FeatureTensor",
    Annotated[
        FeatureVector | FeatureMap | EncodedTensor,
        Field(description="One output of one image: nested lists of numbers, or what `encoding=base64` gives."),
    ],
)


FeaturesByOutput = TypeAliasType(
    "FeaturesByOutput", Annotated[dict[str, FeatureTensor], Field(description="Outputs by their names.")]
)


@dataclass(frozen=True, slots=True)
class ImageFeatures(_ImageResult):
    """The result of one image."""

    features: Annotated[Mapping[str, Fragment | EncodedTensor], described_as(FeaturesByOutput)]
    """Each output asked for, by its name, without a batch axis."""


FeaturesResult = TypeAliasType(
    "FeaturesResult",
    Annotated[ImageFeatures | FailedImage, Field(description="What became of one image; a bad one has `error`.")],
)


@dataclass(frozen=True, slots=True)
class FeaturesResponse(Record):
    """The features of every image of a request."""

    model: ModelReference
    results: list[FeaturesResult]
    """One result an image, in the request's order; `error` in place of `features` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


EmbeddingVector = TypeAliasType(
    "EmbeddingVector",
    Annotated[
        list[float] | str,
        Field(description="An embedding: its numbers, or the base64 of them as little-endian float32."),
    ],
)


@dataclass(frozen=True, slots=True)
class Embedding(Record):
    """The embedding of one image, as OpenAI's clients read it."""

    object: Literal["embedding"]
    """What this is."""
    index: int
    """The image's place in the request, from 0."""
    embedding: Annotated[Fragment | str, described_as(EmbeddingVector)]
    """The embedding, of length 1 unless the request wanted it otherwise."""


@dataclass(frozen=True, slots=True)
class EmbeddingsUsage(Record):
    """What was used. There are no tokens here: both count images."""

    prompt_tokens: int
    """The images of the request."""
    total_tokens: int
    """The same."""


@dataclass(frozen=True, slots=True)
class EmbeddingsResponse(Record):
    """The embedding of every image of a request, as OpenAI's clients read them."""

    object: Literal["list"]
    """What this is."""
    data: list[Embedding]
    """One embedding an image, in the request's order."""
    model: str
    """The version that answered, as `NAME:VERSION`: embeddings of different versions cannot be compared."""
    usage: EmbeddingsUsage


@dataclass(frozen=True, slots=True)
class Cell(Record):
    """One cell of a layer's map."""

    row: int
    """From 0, downwards."""
    column: int
    """From 0, to the right."""


@dataclass(frozen=True, slots=True)
class PointGroup(Record):
    """Where one group of a layer's heads looked."""

    points: Annotated[Fragment, described_as(list[tuple[float, float]])]
    """The sampled points, (x, y) in pixels of the image as sent: pixel (0, 0) reaches from 0 to 1 on both axes. A point
    may lie outside of what the model saw, where everything counts as 0."""
    weights: Annotated[Fragment, described_as(list[float])]
    """The attention that each point received, averaged over the group's heads; they add up to 1."""


@dataclass(frozen=True, slots=True)
class LayerExplanation(Record):
    """Where one deformable attention layer looked."""

    layer: int
    """The layer's place in the order in which they run, from 0."""
    name: str
    """Its name in the network."""
    stage: int
    """The stage that it is in, from 1."""
    block: int
    """Its place in the stage, from 1."""
    query_rows: int
    """Height of the map of queries."""
    query_columns: int
    """Width of the map of queries."""
    query: Cell | None
    """The query that the attention is from, where one was asked for; otherwise it is the mean over all."""
    groups: list[PointGroup]
    """One entry a group."""


@dataclass(frozen=True, slots=True)
class ExplainedImage(_ImageResult):
    """The result of one image."""

    width: int
    """Width of the image as sent, in pixels; after its EXIF orientation where the server follows that."""
    height: int
    """Height of the image as sent."""
    layers: list[LayerExplanation]
    """The layers asked for, in the order in which they run."""


ExplainResult = TypeAliasType(
    "ExplainResult",
    Annotated[ExplainedImage | FailedImage, Field(description="What became of one image; a bad one has `error`.")],
)


@dataclass(frozen=True, slots=True)
class ExplainResponse(Record):
    """Where the model looked in every image of a request."""

    model: ModelReference
    results: list[ExplainResult]
    """One result an image, in the request's order; `error` in place of `layers` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


@dataclass(frozen=True, slots=True)
class Health(Record):
    """The service is well."""

    status: Literal["alive", "ready"]
