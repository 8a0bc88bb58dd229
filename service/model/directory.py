"""The model repository on disk: what a model directory holds, and how it is found and checked.

`<repository>/<model>/<version>/` holds `model.onnx`, `manifest.json` and `labels.tsv`, and `explain.onnx` where the
model can say where it looked. The manifest is the whole contract between the exporter, which writes it, and the
service, which trusts nothing else about a model.

Invariants: a `ModelDirectory` exists only for a directory whose manifest is valid and whose files have the sizes
and sha256 that the manifest gives; class names are as many as the model has classes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.errors import RepositoryError
from service.text_files import BadTextFile, is_blank, read_lines

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
EXPLAIN_FILE = "explain.onnx"
LABELS_FILE = "labels.tsv"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(gt=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """One file of a model directory."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class InputRecord(_Record):
    """The graph's one input: uint8 (batch, height, width, 3), RGB, already resized and cropped."""

    name: Literal["image"] = "image"
    dtype: Literal["uint8"] = "uint8"
    height: Side
    width: Side
    dynamic_size: bool = False
    """Whether the graph takes other heights and widths; the service always sends `height` x `width`."""
    size_multiple: Side = 32
    """With `dynamic_size`, other heights and widths must be multiples of this."""


class PreprocessRecord(_Record):
    """Published preprocessing: bicubic resize to `resize`, ignoring the aspect ratio, then the centre crop.

    `mean` and `std` are per channel on the scale 0 to 1, and are applied inside the graph.
    """

    resize_height: Side
    resize_width: Side
    interpolation: Literal["bicubic"] = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class OutputRecord(_Record):
    """One float32 output; `shape` is without the batch axis, None where it follows a dynamic input size."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    dtype: Literal["float32"] = "float32"
    shape: tuple[int | None, ...]
    max_abs_difference: float = Field(ge=0)
    """Largest absolute difference to the torch model that the exporter measured."""
    reference_std: float = Field(ge=0)
    """Standard deviation of that output in the torch model, the scale to read the difference by."""
    rms_difference: float | None = Field(default=None, ge=0)
    """Root mean square of the differences to the torch model; None in older manifests."""


class QuantizationRecord(_Record):
    """What int8 changed, on images that its ranges were not taken from."""

    calibration: str
    """What the images are; never a path."""
    calibration_images: int = Field(gt=0)
    held_out_images: int = Field(gt=0)
    logits_error: float = Field(ge=0)
    """Root mean square of the logits' differences to the torch model, over their standard deviation."""
    top1_agreement: float = Field(ge=0, le=1)


class VerificationRecord(_Record):
    """How the graph was compared with the torch model before it was put in place."""

    batch_sizes: tuple[Side, ...]
    provider: str
    tolerance: float = Field(gt=0)
    """Allowed difference: in fp32 the largest, as a multiple of max(1, reference_std); otherwise the root mean square,
    as a multiple of reference_std, or in int8 of max(1, reference_std)."""
    quantization: QuantizationRecord | None = None
    """For int8, whose float32 graph was verified at these batch sizes, by the tolerance of fp32, before."""


class ExplainLayerRecord(_Record):
    """What the graph of `explain.onnx` gives of one deformable attention layer."""

    name: str
    """The layer's name in the network, such as `stages.2.attns.1`."""
    stage: int = Field(ge=1)
    block: int = Field(ge=1)
    """The layer's place in its stage, from 1."""
    groups: Side
    key_rows: Side
    key_columns: Side
    query_rows: Side
    """Height of the map that the layer works on: of its queries, and of what it samples."""
    query_columns: Side
    position_difference: float = Field(ge=0)
    """Largest absolute difference of a position to the torch model's that the exporter measured."""
    attention_difference: float = Field(ge=0)
    """The same of the attention."""

    @property
    def points(self) -> int:
        """Sampled points of one group."""
        return self.key_rows * self.key_columns


class ExplainRecord(_Record):
    """`explain.onnx`: where each deformable attention layer looked. Its input is that of `model.onnx`."""

    layers: tuple[ExplainLayerRecord, ...] = Field(min_length=1)
    """In the order in which they run; sizes are those for the input size that the service sends."""

    @property
    def outputs(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Every output, float32, with its shape without the batch axis."""
        return tuple(
            output
            for index, layer in enumerate(self.layers)
            for output in (
                (position_output(index), (layer.groups, layer.points, 2)),
                (attention_output(index), (layer.groups, layer.query_rows * layer.query_columns, layer.points)),
            )
        )


def position_output(layer: int) -> str:
    """Return the name of the output that holds a layer's positions, (y, x), -1 and 1 the outermost cells' centres."""
    return f"position{layer}"


def attention_output(layer: int) -> str:
    """Return the name of the output that holds the probabilities, over the points, of each of a layer's queries."""
    return f"attention{layer}"


class Manifest(_Record):
    """Everything the service needs to know of a model."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: int = Field(gt=0)
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
    explain: ExplainRecord | None = None
    """What `explain.onnx` gives; None where there is none, as in older manifests."""
    exporter: dict[str, str]
    """Versions of the tools that made it."""

    @field_validator("files")
    @classmethod
    def _names_its_files(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        missing = {MODEL_FILE, LABELS_FILE} - files.keys()
        if missing:
            raise ValueError(f"no record of {', '.join(sorted(missing))}")
        for name in files:
            if Path(name).name != name or name == MANIFEST_FILE:
                raise ValueError(f"{name!r} is not the name of a file in a model directory")
        return files

    @model_validator(mode="after")
    def _explain_has_its_file(self) -> Manifest:
        if (self.explain is not None) != (EXPLAIN_FILE in self.files):
            raise ValueError(f"explain and the record of {EXPLAIN_FILE} go together")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> Manifest:
        if self.preprocess.resize_height < self.input.height or self.preprocess.resize_width < self.input.width:
            raise ValueError("the resized image is smaller than the input that is cropped from it")
        return self

    def output(self, name: str) -> OutputRecord:
        """Return the record of the output `name`; KeyError where there is none."""
        for record in self.outputs:
            if record.name == name:
                return record
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Label:
    """One class: its name for people and, where it has one, its WordNet synset."""

    class_id: int
    name: str
    synset: str | None = None


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model directory that was read and checked."""

    path: Path
    manifest: Manifest
    labels: tuple[Label, ...]

    @property
    def model_path(self) -> Path:
        """The graph's file."""
        return self.path / MODEL_FILE

    @property
    def explain_path(self) -> Path:
        """The file of the graph that says where the model looked; there is one where the manifest has `explain`."""
        return self.path / EXPLAIN_FILE


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_labels(path: Path, num_classes: int) -> tuple[Label, ...]:
    """Read a model directory's labels: columns parted by tabs, a header with `class_id`, `name` and maybe `synset`.

    Nothing is quoted, so that a name holds neither tab nor line end. Raises RepositoryError unless the table lists
    exactly the classes 0 ... num_classes - 1 in order.
    """
    try:
        lines = read_lines(path)
    except BadTextFile as error:
        raise RepositoryError(str(error)) from error
    rows = ((number, line.split("\t")) for number, line in enumerate(lines, start=1) if not is_blank(line))
    return labels_of_rows(path, rows, num_classes)


def labels_of_rows(path: Path, rows: Iterator[tuple[int, list[str]]], num_classes: int) -> tuple[Label, ...]:
    """Return the labels in a table's rows, each with the number of its line, header first; raises RepositoryError."""
    _, header = next(rows, (1, []))
    if "class_id" not in header or "name" not in header:
        raise RepositoryError(f"{path}: the first line must name the columns class_id and name")
    labels: list[Label] = []
    for number, cells in rows:
        if len(cells) != len(header):
            raise RepositoryError(f"{path}: line {number} has {len(cells)} columns, the header {len(header)}")
        row = dict(zip(header, cells, strict=True))
        if row["class_id"] != str(len(labels)):
            raise RepositoryError(f"{path}: line {number} should be class {len(labels)}, not {row['class_id']!r}")
        labels.append(Label(len(labels), row["name"], row.get("synset")))
    if len(labels) != num_classes:
        raise RepositoryError(f"{path}: {len(labels)} labels for {num_classes} classes")
    return tuple(labels)


def open_model(path: Path) -> ModelDirectory:
    """Read and check one model directory `<repository>/<model>/<version>`.

    Raises RepositoryError that names the file and what is wrong with it.
    """
    manifest_path = path / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes())
    except OSError as error:
        raise RepositoryError(f"{manifest_path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'manifest'}: {problem['msg']}" for problem in error.errors()
        )
        raise RepositoryError(f"{manifest_path} is not a valid manifest: {problems}") from error
    if (manifest.name, str(manifest.version)) != (path.parent.name, path.name):
        raise RepositoryError(
            f"{manifest_path} is of {manifest.name} version {manifest.version}, "
            f"but lies in {path.parent.name}/{path.name}"
        )
    for name, record in manifest.files.items():
        _check_file(path / name, record)
    return ModelDirectory(path, manifest, read_labels(path / LABELS_FILE, manifest.num_classes))


def _check_file(path: Path, record: FileRecord) -> None:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != record.size_bytes:
            raise RepositoryError(f"{path} has {size_bytes} bytes; its manifest says {record.size_bytes}")
        digest = sha256_of(path)
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error
    if digest != record.sha256:
        raise RepositoryError(f"{path} does not match its manifest: sha256 {digest}, expected {record.sha256}")


def find_models(repository: Path) -> dict[str, tuple[int, ...]]:
    """Return the models in a repository with their versions, ascending; directories being written are passed over."""
    try:
        entries = sorted(entry for entry in repository.iterdir() if re.match(NAME_PATTERN, entry.name))
    except OSError as error:
        raise RepositoryError(f"the model repository {repository} cannot be read: {error.strerror}") from error
    found = {}
    for entry in entries:
        if not entry.is_dir():
            continue
        versions = sorted(
            int(child.name)
            for child in entry.iterdir()
            if re.fullmatch(r"[1-9][0-9]*", child.name) and (child / MANIFEST_FILE).exists()
        )
        if versions:
            found[entry.name] = tuple(versions)
    return found


def select_model(repository: Path, *, name: str | None = None, version: int | None = None) -> ModelDirectory:
    """Open the named model (the only one where no name is given) at the given, or its highest, version."""
    found = find_models(repository)
    if not found:
        raise RepositoryError(f"the model repository {repository} holds no model; make one with: python -m export")
    if name is None:
        if len(found) > 1:
            raise RepositoryError(f"{repository} holds several models, choose one of: {', '.join(found)}")
        name = next(iter(found))
    if name not in found:
        raise RepositoryError(f"{repository} holds no model {name!r}; it holds: {', '.join(found)}")
    if version is None:
        version = found[name][-1]
    if version not in found[name]:
        listed = ", ".join(map(str, found[name]))
        raise RepositoryError(f"{repository} holds no version {version} of {name}; it holds: {listed}")
    return open_model(repository / name / str(version))
