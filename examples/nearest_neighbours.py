"""Find the images of a folder that are most like another, by the model's embeddings.

Needs: pip install httpx numpy, as in .venv/serve

.venv/serve/bin/python examples/nearest_neighbours.py examples/digits examples/images/7.png
"""

import argparse
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif"),
}
MAX_IMAGES, MAX_BYTES, PART_BYTES = 32, 8 * 1024 * 1024, 256
"""Of a request, unless the service takes less, and what a form adds to an image and its name, about."""


def groups(client: httpx.Client, paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield as many images at a time as the service takes in a request."""
    limits = client.get("/v1/models").raise_for_status().json()["limits"]
    max_images, max_bytes = min(MAX_IMAGES, limits["max_images"]), min(MAX_BYTES, limits["max_body_bytes"])
    group: list[Path] = []
    size_bytes = 0
    for path in paths:
        part_bytes = path.stat().st_size + len(path.name) + PART_BYTES
        if group and (len(group) == max_images or size_bytes + part_bytes > max_bytes):
            yield group
            group, size_bytes = [], 0
        group.append(path)
        size_bytes += part_bytes
    yield group


def embeddings(client: httpx.Client, paths: Sequence[Path]) -> NDArray[np.float32]:
    """Return an embedding of length 1 for each image: (images, channels)."""
    batches = []
    for group in groups(client, paths):
        files = [("image", (path.name, path.read_bytes())) for path in group]
        response = client.post(
            "/v1/features?outputs=embedding&normalize=true", files=files, headers={"Accept": "application/x-npz"}
        )
        response.raise_for_status()
        with np.load(io.BytesIO(response.content)) as archive:
            batches.append(archive["embedding"])
    return np.concatenate(batches)


def main() -> None:
    """Print the nearest images with their cosine similarities, nearest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("query", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--neighbours", type=int, default=5)
    options = parser.parse_args()

    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        parser.error(f"{options.folder} holds no images")
    with httpx.Client(base_url=options.url, timeout=60) as client:
        index = embeddings(client, paths)
        (query,) = embeddings(client, [options.query])
    similarities = index @ query  # of vectors of length 1, the cosine of their angle
    for place in np.argsort(-similarities)[: options.neighbours]:
        print(f"{similarities[place]:.4f}  {paths[place]}")


if __name__ == "__main__":
    main()
