"""The query parameters of the inference calls. An unknown one is an error: it would be a typing error otherwise."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from service.engine.types import Priority as EnginePriority
from service.http.answers.schemas import DType
from service.images.preprocessing import SIZE_PATTERN

Priority = TypeAliasType("Priority", Literal["interactive", "bulk"])
OnError = TypeAliasType("OnError", Literal["fail", "skip"])
Encoding = TypeAliasType("Encoding", Literal["list", "base64"])

QUERY_PATTERN = r"^-?[0-9]+(\.[0-9]+)?,-?[0-9]+(\.[0-9]+)?$"


def name_and_version(model: str | None) -> tuple[str | None, str | None]:
    """Return what `NAME` or `NAME:VERSION` names, as it is written; None for what is left out."""
    if model is None:
        return None, None
    name, colon, version = model.partition(":")
    return name, version if colon else None


class CallParameters(BaseModel):
    """What every inference call takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    timeout_ms: Annotated[int, Field(gt=0)] | None = None
    """Deadline in milliseconds from the request's arrival; it can only shorten the server's own."""
    priority: Priority = "interactive"
    """`bulk` work fills what interactive work leaves."""

    @cached_property
    def engine_priority(self) -> EnginePriority:
        """The engine's word for `priority`."""
        return EnginePriority[self.priority.upper()]


class SizedParameters(CallParameters):
    """What every call takes whose images are preprocessed for a size of input."""

    size: Annotated[str | None, Field(json_schema_extra={"pattern": SIZE_PATTERN, "examples": ["384", "480x640"]})] = (
        None
    )
    """The size of the model's input, of a model that takes several: `N` for the published resize and centre crop, in
    proportion, to N x N pixels, or `HEIGHTxWIDTH` for the whole image, resized to that without a crop. By default the
    model's own size, as published."""


class InferenceParameters(SizedParameters):
    """What every inference call under `/v1` takes that names its model in the query."""

    model: str | None = None
    """The model to ask, as `NAME` or `NAME:VERSION`. By default the server's default model, and of a model its default
    version."""
    on_error: OnError = "fail"
    """`fail`: if any image is bad nothing is inferred and every bad one is named. `skip`: the good ones are
    answered, and bad ones carry an `error` in their result."""

    @cached_property
    def model_and_version(self) -> tuple[str | None, str | None]:
        """What `model` names, as it is written: a name and, behind a colon, a version; None for what is left out."""
        return name_and_version(self.model)


class ClassifyParameters(InferenceParameters):
    """The parameters of a classification."""

    top_k: Annotated[int, Field(gt=0)] | None = None
    """How many classes to name for each image, most likely first; more than there are gives all. By default the
    server's setting (5), or all of `classes`."""
    min_score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """The least score: predictions below it are left out, which may leave none."""
    classes: list[str] = []
    """The only classes to name, by their ids, labels or synsets: repeat the parameter, or separate them by commas; a
    label that holds a comma stands alone. Scores stay the probabilities among all classes of the model."""


class FeaturesParameters(InferenceParameters):
    """The parameters of feature extraction."""

    outputs: Annotated[list[str], Field(min_length=1)] = ["embedding"]
    """Outputs of the model; repeat the parameter for several."""
    normalize: bool = False
    """Scale the embedding to length 1; possible where `embedding` is the only output asked for."""
    encoding: Encoding = "list"
    """In JSON: nested lists of numbers, or base64 of the little-endian bytes with dtype and shape."""
    dtype: DType = "float32"
    """Type of the numbers; `float16` halves the answer."""


class ExplainParameters(InferenceParameters):
    """The parameters of an explanation."""

    layer: Annotated[int, Field(ge=0)] | None = None
    """One deformable layer, by its place in the order in which they run, from 0. By default all in JSON, and the last
    in a picture."""
    query: Annotated[str | None, Field(json_schema_extra={"pattern": QUERY_PATTERN, "examples": ["320,240"]})] = None
    """A place `x,y`, in pixels of the image as sent: the attention is then that from there alone, of the query cell of
    each layer that it lies in. It must be in the part that the model sees. By default the mean over all queries."""
