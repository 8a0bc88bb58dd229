"""Classify a folder of any size: several images a request, a few requests at a time, and patience with a busy service.

Needs: pip install httpx, as in .venv/serve

.venv/serve/bin/python examples/many_images.py examples/digits > answers.jsonl

Images share requests, as many as the service says that it takes, and not more than --images: a request for each would
cost both sides more. A bad image is named, and the others of its request are answered.

What the service has no room for (429), or cannot do yet (503), is asked again when it says (Retry-After), a little
later by chance, so that callers that were sent away together do not come back together; lost connections are tried
again after waits that double. It gives up on a request after --tries, says so, and ends with status 1.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif"),
}
TRY_AGAIN = {429, 502, 503, 504}
ONE_TO_BLAME = {413, 500}
"""Too much together, or a failed run: what one image of a request may have done to the others."""
MAX_BYTES = 8 * 1024 * 1024
PART_BYTES = 256
"""What the form adds to an image, at most."""


def groups(paths: Iterable[Path], *, max_images: int, max_bytes: int) -> Iterator[list[Path]]:
    """Yield the images of a request at a time; one alone may have more than `max_bytes`."""
    group: list[Path] = []
    size_bytes = 0
    for path in paths:
        part_bytes = path.stat().st_size + PART_BYTES
        if group and (len(group) == max_images or size_bytes + part_bytes > max_bytes):
            yield group
            group, size_bytes = [], 0
        group.append(path)
        size_bytes += part_bytes
    if group:
        yield group


def wait_s(tries: int, response: httpx.Response | None) -> float:
    """Return how long to wait before the next try."""
    retry_after = response.headers.get("Retry-After", "") if response is not None else ""
    if retry_after.isdecimal():
        return int(retry_after) + random.uniform(0, 1)
    return random.uniform(0.5, 1) * min(2.0**tries, 30.0)


async def ask(client: httpx.AsyncClient, method: str, path: str, *, tries: int, **content: Any) -> httpx.Response:
    """Return the answer that is left after so many tries; raises httpx.TransportError where the last had none."""
    for number in range(1, tries):
        response = None
        try:
            response = await client.request(method, path, **content)
        except httpx.TransportError:
            pass  # as for a proxy's 502
        else:
            if response.status_code not in TRY_AGAIN:
                return response
        await asyncio.sleep(wait_s(number, response))
    return await client.request(method, path, **content)


async def classify(client: httpx.AsyncClient, images: Sequence[bytes], *, tries: int) -> list[dict[str, Any]]:
    """Return the `predictions` of each image, or its `error`."""
    files = [("image", ("image", image)) for image in images]
    try:
        response = await ask(client, "POST", "/v1/classify?priority=bulk&on_error=skip", tries=tries, files=files)
    except httpx.TransportError as failure:
        return [{"error": {"code": "connection", "detail": str(failure) or type(failure).__name__}}] * len(images)
    if response.is_success:
        kinds = ("predictions", "error")
        return [{kind: result[kind] for kind in kinds if kind in result} for result in response.json()["results"]]
    if len(images) > 1 and response.status_code in ONE_TO_BLAME:
        half = len(images) // 2
        return [each for part in (images[:half], images[half:]) for each in await classify(client, part, tries=tries)]
    is_problem = response.headers.get("Content-Type") == "application/problem+json"  # else it is from a proxy
    problem = response.json() if is_problem else {"code": "http", "detail": str(response.status_code)}
    worst = problem.get("errors", [problem])[0]
    return [{"error": {"code": worst["code"], "detail": worst["detail"]}}] * len(images)


def read(paths: Sequence[Path]) -> list[bytes]:
    """Return the bytes of the files."""
    return [path.read_bytes() for path in paths]


async def work(shared: Iterator[list[Path]], client: httpx.AsyncClient, *, tries: int) -> int:
    """Classify groups of images until there are none left, and return how many images could not be."""
    failed = 0
    for paths in shared:
        images = await asyncio.to_thread(read, paths)
        for path, answer in zip(paths, await classify(client, images, tries=tries), strict=True):
            print(json.dumps({"path": str(path), **answer}))
            failed += "error" in answer
    return failed


async def main() -> int:
    """Classify the folder with workers that share one iterator, so that there is never more than they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--images", type=int, default=16, help="most images of a request (default: 16)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (default: 4)")
    parser.add_argument("--tries", type=int, default=6)
    options = parser.parse_args()

    paths = (path for path in options.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    async with httpx.AsyncClient(base_url=options.url, timeout=60) as client:
        listed = await ask(client, "GET", "/v1/models", tries=options.tries)
        limits = listed.raise_for_status().json()["limits"]
        shared = groups(
            paths,
            max_images=min(options.images, limits["max_images"]),
            max_bytes=min(MAX_BYTES, limits["max_body_bytes"]),
        )
        failed = await asyncio.gather(*(work(shared, client, tries=options.tries) for _ in range(options.concurrency)))
    if sum(failed):
        print(f"{sum(failed)} images could not be classified", file=sys.stderr)
    return 1 if sum(failed) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
