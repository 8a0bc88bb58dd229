"""Classify image files side by side, one request each; the service batches them.

Needs: pip install httpx, as in .venv/serve

.venv/serve/bin/python examples/classify_async.py examples/images/7.png [more.png ...]
"""

import argparse
import asyncio
from pathlib import Path

import httpx


async def classify(client: httpx.AsyncClient, path: Path) -> str:
    """Return a line about one image."""
    image = await asyncio.to_thread(path.read_bytes)
    response = await client.post("/v1/classify", content=image, headers={"Content-Type": "application/octet-stream"})
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        fault = response.json()["errors"][0]
        return f"{path}: {fault['code']}: {fault['detail']}"
    response.raise_for_status()
    best = response.json()["results"][0]["predictions"][0]
    return f"{path}: {best['label']} {best['score']:.4f}"


async def main() -> None:
    """Print a line about each image, in the order given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()

    async with httpx.AsyncClient(base_url=options.url, timeout=60) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(classify(client, path)) for path in options.images]
    print(*(task.result() for task in tasks), sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
