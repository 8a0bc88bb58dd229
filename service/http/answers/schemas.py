"""What answers look like: the models behind the JSON of `/v1` and of its documentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from service.model.directory import Manifest

DType = TypeAliasType("DType", Literal["float32", "float16"])
"""Type of the numbers of features."""


class AnswerModel(BaseModel):
    """What all answers have in common: nothing beyond their fields, and those are described by their docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelReference(AnswerModel):
    """The model that answered."""

    name: str
    """Name in the model repository."""
    version: int
    """Version in the model repository."""

    @classmethod
    def of(cls, manifest: Manifest) -> ModelReference:
        """Return the reference to a manifest's model."""
        return cls(name=manifest.name, version=manifest.version)


class Timings(AnswerModel):
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


class Fault(AnswerModel):
    """What is wrong with one image."""

    code: FaultCode
    """Stable name of the fault."""
    detail: str
    """A sentence for people."""


class _ImageResult(AnswerModel):
    index: int
    """The image's place in the request, from 0."""
    filename: str | None
    """The file name of the multipart part, if it had one."""


class FailedImage(_ImageResult):
    """The result of an image that could not be used, under `on_error=skip`."""

    error: Fault
    """What is wrong with it."""


class Prediction(AnswerModel):
    """One class of an image."""

    class_id: int
    """Index of the class."""
    label: str
    """Name of the class."""
    score: float
    """Softmax probability."""


class ClassifiedImage(_ImageResult):
    """The result of one image."""

    predictions: list[Prediction]
    """The most likely classes, highest score first."""


ClassifyResult = TypeAliasType(
    "ClassifyResult",
    Annotated[ClassifiedImage | FailedImage, Field(description="What became of one image; a bad one has `error`.")],
)


class ClassifyResponse(AnswerModel):
    """The classes of every image of a request."""

    model: ModelReference
    results: list[ClassifyResult]
    """One result an image, in the request's order; `error` in place of `predictions` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


class EncodedTensor(AnswerModel):
    """One output under `encoding=base64`."""

    dtype: DType
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


class ImageFeatures(_ImageResult):
    """The result of one image."""

    features: FeaturesByOutput
    """Each output asked for, by its name, without a batch axis."""


FeaturesResult = TypeAliasType(
    "FeaturesResult",
    Annotated[ImageFeatures | FailedImage, Field(description="What became of one image; a bad one has `error`.")],
)


class FeaturesResponse(AnswerModel):
    """The features of every image of a request."""

    model: ModelReference
    results: list[FeaturesResult]
    """One result an image, in the request's order; `error` in place of `features` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


class Cell(AnswerModel):
    """One cell of a layer's map."""

    row: int
    """From 0, downwards."""
    column: int
    """From 0, to the right."""


class PointGroup(AnswerModel):
    """Where one group of a layer's heads looked."""

    points: list[tuple[float, float]]
    """The sampled points, (x, y) in pixels of the image as sent: pixel (0, 0) reaches from 0 to 1 on both axes. A point
    may lie outside of what the model saw, where everything counts as 0."""
    weights: list[float]
    """The attention that each point received, averaged over the group's heads; they add up to 1."""


class LayerExplanation(AnswerModel):
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


class ExplainResponse(AnswerModel):
    """Where the model looked in every image of a request."""

    model: ModelReference
    results: list[ExplainResult]
    """One result an image, in the request's order; `error` in place of `layers` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


class Health(AnswerModel):
    """The service is well."""

    status: Literal["alive", "ready"]
