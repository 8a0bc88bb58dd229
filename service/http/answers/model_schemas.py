"""What the service says of the models that it serves: the JSON of `/v1/models`, and of its documentation."""

from __future__ import annotations

from dataclasses import dataclass

from service.http.answers.schemas import Record
from service.model.directory import ExplainLayerRecord, ExplainRecord, Label, Manifest, ModelDirectory


@dataclass(frozen=True, slots=True)
class LabelEntry(Record):
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


@dataclass(frozen=True, slots=True)
class OutputEntry(Record):
    """One output of a model."""

    name: str
    """Name to ask for it by."""
    shape: list[int | None]
    """Shape, without a batch axis."""


@dataclass(frozen=True, slots=True)
class ExplainLayerEntry(Record):
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


@dataclass(frozen=True, slots=True)
class ExplainEntry(Record):
    """What `/v1/explain` can say of a model."""

    layers: list[ExplainLayerEntry]
    """Every deformable attention layer, in the order in which they run."""

    @classmethod
    def of(cls, record: ExplainRecord) -> ExplainEntry:
        """Return a manifest's record as it is shown."""
        return cls(layers=[ExplainLayerEntry.of(layer, each) for layer, each in enumerate(record.layers)])


@dataclass(frozen=True, slots=True)
class ModelSummary(Record):
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


@dataclass(frozen=True, slots=True)
class ModelList(Record):
    """All served models."""

    models: list[ModelSummary]
    """One entry a model."""


@dataclass(frozen=True, slots=True)
class ModelDetails(Record):
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
