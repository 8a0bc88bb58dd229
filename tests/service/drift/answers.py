"""Parquet of answers for the tests of drift, in the forms that bulk runs and samples have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.samples.columns import PREDICTION, metadata_of, vectors

CHANNELS = 8
FACTS = {"name": "tiny", "version": 3, "precision": "fp32", "created": "", "weights_sha256": "ab" * 32}


def write(
    path: Path,
    classes: Sequence[int | None],
    scores: Sequence[float] | np.ndarray | None = None,
    embeddings: Sequence[Any] | None = None,
    **facts: object,
) -> None:
    """Write a file of images by their first classes, None for one that has none, with scores and embeddings."""
    scores = np.full(len(classes), 0.5) if scores is None else scores
    second = {"class_id": 99, "label": "second", "score": 0.0}
    predictions = [
        None if each is None else [{"class_id": each, "label": f"<class> {each}", "score": score}, second]
        for each, score in zip(classes, scores, strict=True)
    ]
    columns: dict[str, Any] = {"predictions": pa.array(predictions, pa.list_(PREDICTION))}
    shapes = {}
    if embeddings is not None:
        shapes = {"embedding": [CHANNELS]}
        columns["embedding"] = vectors(list(embeddings), [CHANNELS])
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns, metadata=metadata_of(shapes, model={**FACTS, **facts})), path)


def drawn(
    path: Path,
    *,
    seed: int,
    images: int = 400,
    shares: Sequence[float] = (0.4, 0.3, 0.2, 0.1),
    sureness: float = 4.0,
    shift: float = 0.0,
) -> None:
    """Write answers about images whose classes are drawn with these shares; embeddings lie around their classes."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(len(shares), images, p=shares)
    centres = np.random.default_rng(0).normal(size=(len(shares), CHANNELS)) * 2
    embeddings = (centres[classes] + rng.normal(size=(images, CHANNELS)) + shift).astype(np.float32)
    write(path, classes.tolist(), rng.beta(sureness, 2.0, images), embeddings)
