"""The least server that takes a photo and answers: `python -m benchmarks.bare_app --port P --answer FILE`.

An ASGI application under uvicorn, with the event loop and parser that the service has, that reads the body and answers
the bytes of a file. What a request costs there is what no server in Python can do without.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


def bare_app(answer: bytes) -> Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]:
    """Return the application; every request, of any path, gets `answer` as JSON when its body is there."""
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())],
    }
    body = {"type": "http.response.body", "body": answer}

    async def app(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        parts = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        b"".join(parts)
        await send(start)
        await send(body)

    return app


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True, help="file with the bytes of the answer")
    arguments = parser.parse_args()
    app = bare_app(arguments.answer.read_bytes())
    uvicorn.run(
        app, host="127.0.0.1", port=arguments.port, loop="uvloop", http="httptools", lifespan="off", access_log=False,
        log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
