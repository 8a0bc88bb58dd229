"""What the service says of the models that it serves: the JSON of `/v1/models`, and of its documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from service.model.directory import ModelDirectory
from service.model.explain_record import ExplainRecord
from service.model.manifest import GraphForm, Manifest
from service.model.sizes import InputSizes
from service.serving.states import ModelState, VersionStatus


class _Shown(BaseModel):
    """What is shown of a record: its attributes of the same names."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, use_attribute_docstrings=True)


class LabelEntry(_Shown):
    """One class of a model."""

    class_id: int
    """Index of the class."""
    name: str
    """Name of the class."""
    synset: str | None
    """WordNet synset, where the model's labels have them."""


class OutputEntry(_Shown):
    """One output of a model."""

    name: str
    """Name to ask for it by."""
    shape: list[int | None]
    """Shape, without a batch axis."""


class ExplainLayerEntry(_Shown):
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


class ExplainEntry(_Shown):
    """What `/v1/explain` can say of a model."""

    layers: list[ExplainLayerEntry]
    """Every deformable attention layer, in the order in which they run."""

    @classmethod
    def of(cls, record: ExplainRecord) -> ExplainEntry:
        """Return a manifest's record as it is shown, with each layer's place."""
        layers = [
            SimpleNamespace(layer=layer, points=each.points, **dict(each)) for layer, each in enumerate(record.layers)
        ]
        return cls.model_validate(SimpleNamespace(layers=layers))


class ParityEntry(_Shown):
    """How far what a device computes is from what the CPU does, compared when the version was loaded."""

    error: float
    """Relative error, in the worst output."""
    tolerance: float
    """The largest error with which a version is served."""


class ModelSummary(_Shown):
    """One version of a model, and how it is."""

    name: str
    """Name in the model repository."""
    version: int
    """Version in the model repository."""
    variant: str | None
    """The network's variant; null while the version takes no work."""
    state: ModelState
    """Only a version that is `ready` takes work; one that is `draining` finishes what it has."""
    reason: str
    """Why it `failed`, in a sentence; empty in every other state."""
    is_default: bool
    """Whether it answers where its model is asked for without a version."""
    devices: list[str]
    """What it runs on; empty until that is known."""
    graphs: list[GraphForm]
    """The form of its graph that each of these runs; `fused` is for GPUs, by kernels of its own."""
    parity: ParityEntry | None
    """How exactly its devices compute; null before it was loaded, and where it runs on the CPU alone."""

    @classmethod
    def of(cls, status: VersionStatus, manifest: Manifest | None) -> ModelSummary:
        """Return a version as it is, with the manifest of one that takes work."""
        return cls(
            name=status.name,
            version=status.version,
            variant=manifest.variant if manifest else None,
            state=status.state,
            reason=status.reason,
            is_default=status.is_default,
            devices=list(status.devices),
            graphs=list(status.graphs),
            parity=ParityEntry.model_validate(status.parity) if status.parity else None,
        )


class RequestLimits(_Shown):
    """What one request may have, whichever model answers; beyond it requests get 413."""

    max_images: int
    """Most images."""
    max_body_bytes: int
    """Most bytes of a body, whatever its form."""


class ModelEntry(_Shown):
    """A version that takes work, as OpenAI's clients list models."""

    id: str
    """What a request names as its `model`: `NAME` where it is the default version, `NAME:VERSION` elsewhere."""
    object: Literal["model"]
    """What this is."""
    created: int
    """When it was exported, in seconds since 1970; 0 where its manifest has no such time."""
    owned_by: str
    """What serves it."""

    @classmethod
    def of(cls, manifest: Manifest, *, is_default: bool) -> ModelEntry:
        """Return a version by its manifest."""
        name = manifest.name if is_default else f"{manifest.name}:{manifest.version}"
        return cls(id=name, object="model", created=_seconds_since_1970(manifest.created), owned_by="dat-serve")


def _seconds_since_1970(time: str) -> int:
    """Return a manifest's time, which is UTC where it does not say otherwise; 0 where it is none."""
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError:
        return 0
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())


class ModelList(_Shown):
    """All versions of all models."""

    object: Literal["list"]
    """What this is."""
    data: list[ModelEntry]
    """The versions that take work, once more, for OpenAI's clients."""
    default: str
    """Name of the model that answers where a request names none."""
    limits: RequestLimits
    """What one request may have: how many images to send together."""
    models: list[ModelSummary]
    """One entry a version, by name and version; the default model's first."""

    @classmethod
    def of(
        cls,
        default: str,
        limits: RequestLimits,
        models: list[ModelSummary],
        manifests: Mapping[tuple[str, int], Manifest],
    ) -> ModelList:
        """Return the list of versions, with the manifests, by name and version, of those that take work."""
        listed = [(manifests.get((each.name, each.version)), each.is_default) for each in models]
        data = [ModelEntry.of(manifest, is_default=is_default) for manifest, is_default in listed if manifest]
        return cls(object="list", data=data, default=default, limits=limits, models=models)


class InputSizesEntry(_Shown):
    """The sizes of input that `size` may ask a model for."""

    min_side: int
    """Least height and width in pixels."""
    max_side: int
    """Greatest height and width."""
    multiple: int
    """What heights and widths are multiples of."""
    max_pixels: int
    """Most pixels, height times width."""
    explain_max_pixels: int | None
    """The same for `/v1/explain`; null where that takes the model's own size alone."""


class ModelDetails(ModelSummary):
    """Everything that a caller may want to know of one version of a model."""

    variant: str
    """The network's variant."""
    versions: list[ModelSummary]
    """Every version of the model, this one too."""
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
    input_sizes: InputSizesEntry | None
    """Other sizes that it takes; null where it takes its own alone."""
    resize_height: int
    """Height that images are resized to before the centre crop."""
    resize_width: int
    """Width that images are resized to before the centre crop."""
    resize: str
    """`exact` where images are resized as published, `fast` where large JPEG files are decoded at a fraction first."""
    interpolation: str
    """Filter of the resize."""
    mean: tuple[float, float, float]
    """Mean of the normalisation, which the model does itself, per channel on the scale 0 to 1."""
    std: tuple[float, float, float]
    """Standard deviation of the normalisation."""
    temperature: float | None
    """What logits are divided by before softmax, so that scores are as likely as they say; null where nobody has
    calibrated the model. The output `logits` stays as it is."""
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
    def of_model(
        cls,
        model: ModelDirectory,
        summary: ModelSummary,
        *,
        versions: Sequence[ModelSummary],
        explain: ExplainRecord | None,
        sizes: InputSizes,
        explain_sizes: InputSizes,
        resize: str,
    ) -> ModelDetails:
        """Return what a version's manifest and labels say, how all versions are, and `explain` of where it looks.

        `sizes` and `explain_sizes` are those that it is served and explained at, `resize` the setting.
        """
        manifest = model.manifest
        facts = {
            **dict(summary),
            "versions": list(versions),
            **dict(manifest),
            **dict(manifest.preprocess),
            "input_height": manifest.input.height,
            "input_width": manifest.input.width,
            "input_sizes": _input_sizes(sizes, explain_sizes if explain else None),
            "explain": ExplainEntry.of(explain) if explain else None,
            "labels": model.labels,
            "resize": resize,
        }
        return cls.model_validate(SimpleNamespace(**facts))


def _input_sizes(sizes: InputSizes, explained: InputSizes | None) -> InputSizesEntry | None:
    if not sizes.is_free:
        return None
    least, greatest = sizes.record.sides
    return InputSizesEntry(
        min_side=least,
        max_side=greatest,
        multiple=sizes.record.size_multiple,
        max_pixels=sizes.max_pixels,
        explain_max_pixels=explained.max_pixels if explained is not None and explained.is_free else None,
    )
