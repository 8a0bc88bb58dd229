"""What answers look like: the models behind the JSON of `/v1` and of its documentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from service.repository import ExplainLayerRecord, ExplainRecord, Label, Manifest, ModelDirectory

DType = TypeAliasType("DType", Literal["float32", "float16"])
"""Type of the numbers of features."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelReference(_Answer):
    """The model that answered."""

    name: str
    """Name in the model repository."""
    version: int
    """Version in the model repository."""

    @classmethod
    def of(cls, manifest: Manifest) -> ModelReference:
        """Return the reference to a manifest's model."""
        return cls(name=manifest.name, version=manifest.version)


class Timings(_Answer):
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


FaultCode = TypeAliasType("FaultCode", Literal["empty_image", "unsupported_format", "undecodable", "too_many_pixels"])


class Fault(_Answer):
    """What is wrong with one image."""

    code: FaultCode
    """Stable name of the fault."""
    detail: str
    """A sentence for people."""


class FailedImage(_Answer):
    """The result of an image that could not be used, under `on_error=skip`."""

    index: int
    """The image's place in the request, from 0."""
    filename: str | None
    """The file name of the multipart part, if it had one."""
    error: Fault
    """What is wrong with it."""


class Prediction(_Answer):
    """One class of an image."""

    class_id: int
    """Index of the class."""
    label: str
    """Name of the class."""
    score: float
    """Softmax probability."""


class ClassifiedImage(_Answer):
    """The result of one image."""

    index: int
    """The image's place in the request, from 0."""
    filename: str | None
    """The file name of the multipart part, if it had one."""
    predictions: list[Prediction]
    """The most likely classes, highest score first."""


ClassifyResult = TypeAliasType(
    "ClassifyResult",
    Annotated[ClassifiedImage | FailedImage, Field(description="What became of one image; a bad one has `error`.")],
)


class ClassifyResponse(_Answer):
    """The classes of every image of a request."""

    model: ModelReference
    results: list[ClassifyResult]
    """One result an image, in the request's order; `error` in place of `predictions` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


class EncodedTensor(_Answer):
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


class ImageFeatures(_Answer):
    """The result of one image."""

    index: int
    """The image's place in the request, from 0."""
    filename: str | None
    """The file name of the multipart part, if it had one."""
    features: FeaturesByOutput
    """Each output asked for, by its name, without a batch axis."""


FeaturesResult = TypeAliasType(
    "FeaturesResult",
    Annotated[ImageFeatures | FailedImage, Field(description="What became of one image; a bad one has `error`.")],
)


class FeaturesResponse(_Answer):
    """The features of every image of a request."""

    model: ModelReference
    results: list[FeaturesResult]
    """One result an image, in the request's order; `error` in place of `features` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


class Cell(_Answer):
    """One cell of a layer's map."""

    row: int
    """From 0, downwards."""
    column: int
    """From 0, to the right."""


class PointGroup(_Answer):
    """Where one group of a layer's heads looked."""

    points: list[tuple[float, float]]
    """The sampled points, (x, y) in pixels of the image as sent: pixel (0, 0) reaches from 0 to 1 on both axes. A point
    may lie outside of what the model saw, where everything counts as 0."""
    weights: list[float]
    """The attention that each point received, averaged over the group's heads; they add up to 1."""


class LayerExplanation(_Answer):
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


class ExplainedImage(_Answer):
    """The result of one image."""

    index: int
    """The image's place in the request, from 0."""
    filename: str | None
    """The file name of the multipart part, if it had one."""
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


class ExplainResponse(_Answer):
    """Where the model looked in every image of a request."""

    model: ModelReference
    results: list[ExplainResult]
    """One result an image, in the request's order; `error` in place of `layers` where the image is bad."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    timings_ms: Timings


class LabelEntry(_Answer):
    """One class of a model."""

    class_id: int
    """Index of the class."""
    name: str
    """Name of the class."""
    synset: str | None
    """WordNet synset, where the model's labels have them."""

    @classmethod
    def of(cls, label: Label) -> LabelEntry:
        """Return a label as it is shown."""
        return cls(class_id=label.class_id, name=label.name, synset=label.synset)


class OutputEntry(_Answer):
    """One output of a model."""

    name: str
    """Name to ask for it by."""
    shape: list[int | None]
    """Shape, without a batch axis."""


class ExplainLayerEntry(_Answer):
    """One deformable attention layer, as `/v1/explain` answers for it."""

    layer: int
    """The layer's place in the order in which they run, from 0."""
    name: str
    """Its name in the network."""
    stage: int
    """The stage that it is in, from 1."""
    block: int
    """Its place in the stage, from 1."""
    groups: int
    """Groups of heads, each with points of its own."""
    points: int
    """Points of one group."""
    query_rows: int
    """Height of the map of queries."""
    query_columns: int
    """Width of the map of queries."""

    @classmethod
    def of(cls, layer: int, record: ExplainLayerRecord) -> ExplainLayerEntry:
        """Return a layer's record as it is shown."""
        return cls(
            layer=layer,
            name=record.name,
            stage=record.stage,
            block=record.block,
            groups=record.groups,
            points=record.points,
            query_rows=record.query_rows,
            query_columns=record.query_columns,
        )


class ExplainEntry(_Answer):
    """What `/v1/explain` can say of a model."""

    layers: list[ExplainLayerEntry]
    """Every deformable attention layer, in the order in which they run."""

    @classmethod
    def of(cls, record: ExplainRecord) -> ExplainEntry:
        """Return a manifest's record as it is shown."""
        return cls(layers=[ExplainLayerEntry.of(layer, each) for layer, each in enumerate(record.layers)])


class ModelSummary(_Answer):
    """One served model."""

    name: str
    """Name in the model repository."""
    version: int
    """Version in the model repository."""
    variant: str
    """The network's variant."""

    @classmethod
    def of(cls, manifest: Manifest) -> ModelSummary:
        """Return a manifest's summary."""
        return cls(name=manifest.name, version=manifest.version, variant=manifest.variant)


class ModelList(_Answer):
    """All served models."""

    models: list[ModelSummary]
    """One entry a model."""


class ModelDetails(_Answer):
    """Everything that a caller may want to know of a model."""

    name: str
    """Name in the model repository."""
    version: int
    """Version in the model repository."""
    variant: str
    """The network's variant."""
    precision: str
    """Precision that the model computes in."""
    created: str
    """When it was exported, ISO 8601, UTC."""
    num_classes: int
    """Number of classes."""
    input_height: int
    """Height of the model's input in pixels."""
    input_width: int
    """Width of the model's input in pixels."""
    resize_height: int
    """Height that images are resized to before the centre crop."""
    resize_width: int
    """Width that images are resized to before the centre crop."""
    interpolation: str
    """Filter of the resize."""
    mean: tuple[float, float, float]
    """Mean of the normalisation, which the model does itself, per channel on the scale 0 to 1."""
    std: tuple[float, float, float]
    """Standard deviation of the normalisation."""
    outputs: list[OutputEntry]
    """Outputs that `/v1/features` can be asked for."""
    opset: int
    """ONNX opset of the graph."""
    sampling: str
    """How the graph samples at deformed points."""
    target: str | None
    """Kind of device that the graph was made for, where it is known."""
    weights_source: str
    """The file that the weights came from."""
    weights_sha256: str
    """Sha256 of that file."""
    explain: ExplainEntry | None
    """What `/v1/explain` can say of the model; null where it cannot say anything."""
    labels: list[LabelEntry]
    """The classes, by index."""

    @classmethod
    def of(cls, model: ModelDirectory, *, explain: ExplainRecord | None) -> ModelDetails:
        """Return what a model's manifest and labels say, and `explain` of where it looks."""
        manifest = model.manifest
        return cls(
            **manifest.model_dump(
                include={
                    "name", "version", "variant", "precision", "created", "num_classes", "opset", "sampling", "target",
                    "weights_source", "weights_sha256",
                }
            ),
            **manifest.preprocess.model_dump(),
            input_height=manifest.input.height,
            input_width=manifest.input.width,
            outputs=[OutputEntry(name=record.name, shape=list(record.shape)) for record in manifest.outputs],
            explain=ExplainEntry.of(explain) if explain else None,
            labels=[LabelEntry.of(label) for label in model.labels],
        )  # fmt: skip


class Health(_Answer):
    """The service is well."""

    status: Literal["alive", "ready"]


class ImageError(_Answer):
    """What is wrong with one image of a refused request."""

    index: int
    """The image's place in the request, from 0."""
    code: str
    """Stable name of the fault."""
    detail: str
    """A sentence for people."""


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """Reference to a description of this kind of problem."""
    title: str
    """The kind of problem, for people."""
    status: int
    """The HTTP status."""
    detail: str
    """What happened here, for people."""
    code: str
    """Stable name of the kind of problem, for programs."""
    request_id: str
    """The request's id, as in the header X-Request-ID."""
    errors: list[ImageError] | SkipJsonSchema[None] = None
    """Where images are at fault: every bad one."""
