"""The answers in Parquet files, of bulk runs or of samples of requests: what is compared of them, and no more.

Files are read a batch of rows at a time. What is held: a count a class, a score an image, and at most MOST_VECTORS
vectors, drawn from all with equal chances.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.errors import StartupError
from service.samples.columns import METADATA_KEY

MOST_VECTORS = 1000
_BATCH_ROWS = 4096
_BATCH_VALUES = 1 << 23
"""Numbers of vectors that are read at once, where a row has many."""
ModelKey: TypeAlias = tuple[str, int, str]
"""Name, version and the weights' SHA-256."""


class BadAnswers(StartupError):
    """Files that hold no answers, or not of one model."""

    code = "drift"


@dataclass(slots=True)
class Answers:
    """What was answered."""

    model: ModelKey
    images: int = 0
    """All rows, bad ones too."""
    classes: Counter[int] = field(default_factory=Counter)
    """Images by the class that was put first."""
    labels: dict[int, str] = field(default_factory=dict)
    """Names of these classes."""
    scores: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    """Of the class that was put first, one an image that has classes."""
    vectors: NDArray[np.float32] | None = None
    """Some of the output's (images, channels); None where there is none."""
    gone: int = 0
    """Files that were removed while others were read, as those of a sample are."""

    @property
    def classified(self) -> int:
        """Images that have classes."""
        return len(self.scores)


def read_answers(
    paths: Sequence[str], *, model: tuple[str, int | None] | None, output: str, rng: np.random.Generator
) -> Answers:
    """Return what files hold, of the model and version that are named where there are several.

    Raises BadAnswers that names the file, or the models to choose from.
    """
    models = {path: key for path in paths if (key := _model_of(path)) is not None}
    wanted = {path: key for path, key in models.items() if model is None or _is_meant(key, model)}
    keys = set(wanted.values())
    if not keys:
        held = ", ".join(sorted({_name(key) for key in models.values()})) or "none"
        raise BadAnswers(f"{paths[0]}: no answers of that model are there; those that are: {held}")
    if len(keys) > 1:
        raise BadAnswers(
            f"{paths[0]} and others hold answers of several models, or of several exports of one: "
            f"{', '.join(sorted(_name(key) for key in keys))}. Choose one by --model NAME:VERSION, or name its files"
        )
    answers = Answers(keys.pop(), gone=len(paths) - len(models))
    reservoir = _Reservoir(rng)
    scores: list[NDArray[np.float32]] = []
    for path in wanted:
        try:
            with pq.ParquetFile(path) as file:
                columns = [name for name in ("predictions", output) if name in file.schema_arrow.names]
                channels = _channels(file.schema_arrow, output) or 1
                for batch in file.iter_batches(max(min(_BATCH_ROWS, _BATCH_VALUES // channels), 1), columns=columns):
                    _add(batch, answers, scores, output, reservoir)
        except FileNotFoundError:
            answers.gone += 1
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise BadAnswers(f"{path} cannot be read: {error}") from error
    if scores:
        answers.scores = np.concatenate(scores)
    answers.vectors = reservoir.vectors
    return answers


def _channels(schema: pa.Schema, output: str) -> int | None:
    """Return how many numbers an output has, None where it is not there; raises TypeError where it is no vector."""
    if output not in schema.names:
        return None
    kind = schema.field(output).type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise TypeError(f"the column {output} does not hold vectors")
    channels: int = kind.list_size
    return channels


def _model_of(path: str) -> ModelKey | None:
    """Return the model that a file's answers are of, None where the file is gone; raises BadAnswers."""
    try:
        schema = pq.read_schema(path)
        facts: Mapping[str, Any] = json.loads(schema.metadata[METADATA_KEY])["model"]
        key = (str(facts["name"]), int(facts["version"]), str(facts["weights_sha256"]))
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise BadAnswers(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BadAnswers(f"{path} is neither of a bulk run nor of a sample of requests") from error
    return key


def _is_meant(key: ModelKey, model: tuple[str, int | None]) -> bool:
    name, version = model
    return key[0] == name and version in (None, key[1])


def _name(key: ModelKey) -> str:
    return f"{key[0]}:{key[1]} (weights {key[2][:8]})"


def _add(
    batch: pa.RecordBatch, answers: Answers, scores: list[NDArray[np.float32]], output: str, reservoir: _Reservoir
) -> None:
    answers.images += batch.num_rows
    if "predictions" in batch.schema.names:
        first = pc.list_element(batch["predictions"].drop_null(), 0)
        class_ids = pc.struct_field(first, "class_id").to_numpy(zero_copy_only=False)
        scores.append(pc.struct_field(first, "score").to_numpy(zero_copy_only=False).astype(np.float32))
        ids, places, counts = np.unique(class_ids, return_index=True, return_counts=True)
        names = pc.struct_field(first, "label").take(pa.array(places)).to_pylist()
        for class_id, count, name in zip(ids.tolist(), counts.tolist(), names, strict=True):
            answers.classes[class_id] += count
            answers.labels[class_id] = name
    if output in batch.schema.names:
        there = batch[output].drop_null()
        if len(there):
            reservoir.add(there.flatten().to_numpy(zero_copy_only=False).reshape(len(there), -1))


class _Reservoir:
    """Some of many vectors: each gets a random number, and those with the highest stay."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._numbers = np.empty(0)
        self.vectors: NDArray[np.float32] | None = None

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Take vectors (images, channels); those that are not finite are left."""
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if self.vectors is not None:
            if vectors.shape[1] != self.vectors.shape[1]:
                raise TypeError(f"{vectors.shape[1]} channels, where others have {self.vectors.shape[1]}")
            vectors = np.concatenate([self.vectors, vectors])
        numbers = np.concatenate([self._numbers, self._rng.random(len(vectors) - len(self._numbers))])
        if len(numbers) > MOST_VECTORS:
            kept = np.argpartition(numbers, -MOST_VECTORS)[-MOST_VECTORS:]
            vectors, numbers = vectors[kept], numbers[kept]
        self.vectors, self._numbers = vectors, numbers
