"""Classify a folder of any size: a few requests at a time, and patience with a busy service.

Needs: pip install httpx, as in .venv/serve

.venv/serve/bin/python examples/many_images.py examples/digits > answers.jsonl

What the service has no room for (429), or cannot do yet (503), is asked again when it says (Retry-After), a little
later by chance, so that callers that were sent away together do not come back together; lost connections are tried
again after waits that double. It gives up on an image after --tries, says so, and ends with status 1.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif"),
}
TRY_AGAIN = {429, 502, 503, 504}


def wait_s(tries: int, response: httpx.Response | None) -> float:
    """Return how long to wait before the next try."""
    retry_after = response.headers.get("Retry-After", "") if response is not None else ""
    if retry_after.isdecimal():
        return int(retry_after) + random.uniform(0, 1)
    return random.uniform(0.5, 1) * min(2.0**tries, 30.0)


async def classify(client: httpx.AsyncClient, image: bytes, *, tries: int) -> dict[str, Any]:
    """Return an image's `predictions`, or the `error` that is left after so many tries."""
    error: dict[str, str] = {}
    for number in range(1, tries + 1):
        response = None
        try:
            response = await client.post(
                "/v1/classify?priority=bulk", content=image, headers={"Content-Type": "application/octet-stream"}
            )
        except httpx.TransportError as failure:
            error = {"code": "connection", "detail": str(failure) or type(failure).__name__}
        else:
            if response.is_success:
                return {"predictions": response.json()["results"][0]["predictions"]}
            is_problem = response.headers["Content-Type"] == "application/problem+json"  # else it is from a proxy
            problem = response.json() if is_problem else {"code": "http", "detail": str(response.status_code)}
            worst = problem.get("errors", [problem])[0]
            error = {"code": worst["code"], "detail": worst["detail"]}
            if response.status_code not in TRY_AGAIN:
                break
        if number < tries:
            await asyncio.sleep(wait_s(number, response))
    return {"error": error}


async def work(paths: Iterator[Path], client: httpx.AsyncClient, *, tries: int) -> int:
    """Classify images until there are none left, and return how many could not be."""
    failed = 0
    for path in paths:
        image = await asyncio.to_thread(path.read_bytes)
        answer = await classify(client, image, tries=tries)
        print(json.dumps({"path": str(path), **answer}))
        failed += "error" in answer
    return failed


async def main() -> int:
    """Classify the folder with workers that share one iterator, so that there is never more than they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--tries", type=int, default=6)
    options = parser.parse_args()

    paths = (path for path in options.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    async with httpx.AsyncClient(base_url=options.url, timeout=60) as client:
        failed = await asyncio.gather(*(work(paths, client, tries=options.tries) for _ in range(options.concurrency)))
    if sum(failed):
        print(f"{sum(failed)} images could not be classified", file=sys.stderr)
    return 1 if sum(failed) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
