"""Small sets of images in every form that bulk reads, and their rows as it should write them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.service.pictures import photo

BAD = b"no image"


def write_files(folder: Path, count: int, *, bad: Iterable[int] = ()) -> list[Path]:
    """Write numbered images; those in `bad` are none."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:03}.png"
        path.write_bytes(BAD if number in bad else photo(seed=number))
        paths.append(path)
    return paths


def write_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar shard, packed where its name says so."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as shard:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's folder as anybody reads it, in order."""
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def vector(row: Mapping[str, Any], output: str) -> np.ndarray:
    return np.array(row[output], np.float32)
