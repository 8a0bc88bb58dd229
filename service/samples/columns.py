"""How predictions and outputs are columns of Parquet, in a sample of requests and in the results of bulk runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.errors import InferenceFailed
from service.model.directory import ModelDirectory
from service.model.manifest import EMBEDDING
from service.model.postprocess import softmax, top_k
from service.samples.records import SampledImage, SampledRequest

METADATA_KEY = b"dat_serve"
"""Of the schema's metadata: JSON with the model, and the shape of each output."""
PREDICTION = pa.struct([("class_id", pa.int32()), ("label", pa.string()), ("score", pa.float32())])


def metadata_of(shapes: Mapping[str, Sequence[int]], *, model: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the metadata of a schema with outputs of these shapes."""
    document = {"model": dict(model), "outputs": {name: list(shape) for name, shape in shapes.items()}}
    return {METADATA_KEY: json.dumps(document).encode()}


def vectors(rows: Sequence[NDArray[np.float32] | None], shape: Sequence[int]) -> pa.Array:
    """Return an output as lists of one length; null where a row has none."""
    size = math.prod(shape)
    values = np.zeros((len(rows), size), np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            values[place] = row.reshape(size)
    absent = pa.array([row is None for row in rows])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size, mask=absent)


def sample_as_parquet(
    model: ModelDirectory, requests: Sequence[SampledRequest], *, with_images: bool, with_names: bool
) -> bytes:
    """Return the file of requests to one version of a model, a row an image."""
    manifest = model.manifest
    images = [(request, image) for request in requests for image in request.images]
    columns: dict[str, pa.Array] = {
        "time": pa.array([int(request.at_s * 1e6) for request, _ in images], pa.timestamp("us", tz="UTC")),
        "request_id": pa.array([request.request_id for request, _ in images], pa.string()),
        "route": pa.array([request.route for request, _ in images], pa.string()),
        "image": pa.array([image.place for _, image in images], pa.int32()),
        "predictions": pa.array(
            [_predictions(model, image, request.top_k) for request, image in images], pa.list_(PREDICTION)
        ),
    }
    shapes = {name: shape for name, shape in manifest.shapes.items() if name == EMBEDDING}
    for name, shape in shapes.items():
        columns[name] = vectors([image.outputs.get(name) for _, image in images], shape)
    if with_names:
        columns["name"] = pa.array([_text(image.name) for _, image in images], pa.string())
    if with_images:
        columns["file"] = pa.array([image.file for _, image in images], pa.binary())
    facts = {
        "name": manifest.name,
        "version": manifest.version,
        "precision": manifest.precision,
        "created": manifest.created,
        "weights_sha256": manifest.weights_sha256,
    }
    table = pa.table(columns, metadata=metadata_of(shapes, model=facts))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["route", "predictions.list.element.label"])
    return bytes(sink.getvalue())


def _predictions(model: ModelDirectory, image: SampledImage, count: int) -> list[dict[str, object]] | None:
    """Return an image's classes, highest first; None where its run gave none, or none that are numbers."""
    logits = image.outputs.get(model.manifest.class_output)
    if logits is None:
        return None
    try:
        best = top_k(softmax(logits, model.manifest.temperature), count)
    except InferenceFailed:
        return None
    return [{"class_id": class_id, "label": model.labels[class_id].name, "score": score} for class_id, score in best]


def _text(name: str | None) -> str | None:
    """Return a name without what UTF-8 cannot have."""
    return name and name.encode("utf-8", "backslashreplace").decode()
