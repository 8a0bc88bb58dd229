"""Classify image files, one request for all of them.

Needs: pip install httpx, as in .venv/serve

.venv/serve/bin/python examples/classify_httpx.py examples/images/7.png [more.png ...]
"""

import argparse
import sys
from pathlib import Path

import httpx


def main() -> int:
    """Print the classes of each image, or what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--top-k", type=int, default=3)
    options = parser.parse_args()

    files = [("image", (path.name, path.read_bytes())) for path in options.images]
    # With on_error=skip the good images are answered even where others are bad.
    query = {"top_k": options.top_k, "on_error": "skip"}
    response = httpx.post(f"{options.url}/v1/classify", files=files, params=query, timeout=60)
    if response.is_error:
        problem = response.json()
        print(f"{problem['code']}: {problem['detail']} (request {problem['request_id']})", file=sys.stderr)
        return 1
    for result in response.json()["results"]:
        if "error" in result:
            print(f"{result['filename']}: {result['error']['code']}: {result['error']['detail']}")
            continue
        for prediction in result["predictions"]:
            print(f"{result['filename']}: {prediction['label']} {prediction['score']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
