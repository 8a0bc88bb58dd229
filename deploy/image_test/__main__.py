"""Build an image, run it as the least that it may be, ask its service, and say what takes the room.

    python3 -m deploy.image_test                                 build the CPU image with Docker and test it
    python3 -m deploy.image_test --target cuda --run-option=--gpus=all
    python3 -m deploy.image_test --engine podman -- --build-arg PYTHON_IMAGE=registry.example.org/python:3.11

In the root of the repository, with nothing but Python. The container has a read-only root, no capabilities, /tmp in
memory, and the image's own entry point, variables and user. buildah, which runs no containers, needs root for it, and
its container has the machine's network. Exit status: 0 where every check passes, else 1.
"""

from __future__ import annotations

import argparse
import json
import queue
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.image_test.engines import Engine, ImageConfig, engine_for
from deploy.image_test.sizes import MEGABYTE, read_layers, report

_PATIENCE_S = 180
"""For the model to load, and for the service to end."""
_LIMIT_MB = {"cpu": 450, "cuda": 2600}
_ABSENT = ("torch", "triton", "onnx", "pip", "setuptools", "onnxruntime.transformers", "pytest")
_PROBE = (
    "import importlib.util as u, json, os, sys; from service.images.native import LIBRARY; print(json.dumps("
    "{'user': os.getuid(), 'found': [n for n in sys.argv[1:] if u.find_spec(n)], 'compiled': LIBRARY.exists()}))"
)


class CheckFailed(Exception):
    """What an image should do and does not."""


def main() -> int:
    """Build and test as the command line says."""
    options = _parse()
    engine = engine_for(options.engine)
    if options.build:
        engine.build(target=options.target, tag=options.tag, options=options.build_options)
    config = engine.config(options.tag)
    checks: list[Callable[[], str]] = [
        lambda: check_config(config),
        lambda: check_size(engine, options.tag, limit_mb=options.limit_mb),
        lambda: check_contents(engine, options.tag, options.run_option),
        lambda: check_service(engine, options.tag, config, environment=options.env, run_options=options.run_option),
    ]
    passed = [_passes(check) for check in checks]
    return 0 if all(passed) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m deploy.image_test", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="docker", help="docker, podman or buildah, with options of its own")
    parser.add_argument("--target", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tag", help="the image's name (default: dat-serve:TARGET)")
    parser.add_argument("--build", default=True, action=argparse.BooleanOptionalAction, help="build it first")
    parser.add_argument("--limit-mb", type=float, help="largest size unpacked (default: 450 for cpu, 2600 for cuda)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the container")
    parser.add_argument("--run-option", action="append", default=[], metavar="OPTION", help="further option of `run`")
    parser.add_argument("build_options", nargs="*", metavar="BUILD_OPTION", help="after --, options of `build`")
    options = parser.parse_args()
    options.tag = options.tag or f"dat-serve:{options.target}"
    options.limit_mb = options.limit_mb or _LIMIT_MB.get(options.target)
    return options


def _passes(check: Callable[[], str]) -> bool:
    try:
        print(f"ok: {check()}", flush=True)
    except CheckFailed as failure:
        print(f"FAILED: {failure}", flush=True)
        return False
    return True


def check_config(config: ImageConfig) -> str:
    """See that nothing runs as root or through a shell, and that the image says how it ends and how it fares."""
    wrong = []
    user = config.user.partition(":")[0]
    if not user.isdigit() or int(user) == 0:
        wrong.append(f"its user is {config.user!r}, not the number of one that is not root")
    if not config.entrypoint or config.entrypoint[0] in ("/bin/sh", "sh"):
        wrong.append(f"its entry point is {list(config.entrypoint)}")
    if config.healthcheck[:1] != ["CMD"]:
        wrong.append(f"its health check is {list(config.healthcheck)}")
    if config.stop_signal not in ("SIGTERM", "15"):
        wrong.append(f"it is stopped by {config.stop_signal!r}")
    if not config.labels.get("org.opencontainers.image.version"):
        wrong.append("it has no label with its version")
    if wrong:
        raise CheckFailed("; ".join(wrong))
    return f"user {config.user}, entry point {' '.join(config.entrypoint)}, no shell"


def check_size(engine: Engine, tag: str, *, limit_mb: float | None) -> str:
    """Print what takes the room, and see that it is not too much."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "image.tar")
        engine.save(tag, archive)
        layers = read_layers(archive)
    print(*report(layers), sep="\n")
    size_mb = sum(layer.size_bytes for layer in layers) / MEGABYTE
    if limit_mb is not None and size_mb > limit_mb:
        raise CheckFailed(f"{size_mb:.0f} MB unpacked, more than {limit_mb:g}")
    return f"{size_mb:.0f} MB unpacked" + (f", at most {limit_mb:g}" if limit_mb is not None else "")


def check_contents(engine: Engine, tag: str, run_options: Sequence[str]) -> str:
    """See that Python runs as the image's user, with what is compiled, and without what exports, installs or tests."""
    command = ["python", "-c", _PROBE, *_ABSENT]
    with engine.run(tag, command=command, environment=(), options=run_options) as container:
        output, errors = container.process.communicate(timeout=_PATIENCE_S)
    if container.process.returncode != 0:
        raise CheckFailed(f"Python does not run: {errors.strip()}")
    seen = json.loads(output)
    if seen["user"] == 0 or seen["found"]:
        raise CheckFailed(f"user {seen['user']}, and there is {', '.join(seen['found']) or 'nothing'} to import")
    if not seen["compiled"]:
        raise CheckFailed("the library that resizes images was not compiled into it")
    return f"runs as user {seen['user']}, without {', '.join(_ABSENT)}"


def check_service(
    engine: Engine, tag: str, config: ImageConfig, *, environment: Sequence[str], run_options: Sequence[str]
) -> str:
    """Start the service, ask it, ask the health command before and after, and stop it by SIGTERM."""
    with engine.run(tag, command=None, environment=environment, options=run_options) as container:
        log = _Log(container.process)
        log.wait_for("ready")
        container.find_port()
        answer = _classify(container.port)
        health = container.execute(config.healthcheck[1:])
        if health.returncode != 0:
            raise CheckFailed(f"the health check ends with {health.returncode}: {health.stderr.strip()}")
        container.terminate()
        status = container.process.wait(timeout=_PATIENCE_S)
        log.join()
    if status != 0:
        raise CheckFailed(f"SIGTERM ends it with status {status}")
    return f"{answer}; the health check says {health.stdout.strip()!r}; SIGTERM ends it with status 0"


class _Log:
    """A service's log, read as it is written."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._discard)]
        for reader in self._readers:
            reader.start()

    def wait_for(self, message: str) -> None:
        """Return when that message comes; raises CheckFailed if the log ends, or too long nothing is written."""
        seen = []
        while (line := self._next()) is not None:
            seen.append(line)
            if line.startswith("{") and json.loads(line).get("message") == message:
                return
        raise CheckFailed(f"the service ended before it was {message}:\n{''.join(seen)}")

    def join(self) -> None:
        """Wait for the log's end."""
        for reader in self._readers:
            reader.join()

    def _next(self) -> str | None:
        try:
            return self._lines.get(timeout=_PATIENCE_S)
        except queue.Empty:
            raise CheckFailed(f"the service logs nothing for {_PATIENCE_S} s") from None

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._lines.put(line)
        self._lines.put(None)

    def _discard(self) -> None:
        for _ in self._process.stdout or ():
            pass


def _classify(port: int) -> str:
    """Ask for the class of a handwritten one; only the demo model is expected to know it."""
    url = f"http://127.0.0.1:{port}/v1/classify"
    request = urllib.request.Request(url, data=drawn_one(), headers={"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as response:  # noqa: S310
            answer = json.load(response)
    except OSError as error:
        raise CheckFailed(f"it does not answer: {error}") from error
    best = answer["results"][0]["predictions"][0]
    model = answer["model"]["name"]
    if model == "dat_demo" and best["label"] != "1":
        raise CheckFailed(f"the demo model takes a 1 for a {best['label']}")
    return f"{model} answers {best['label']!r} with {best['score']:.3f}"


def drawn_one(side: int = 64) -> bytes:
    """Return a PNG file of a vertical stroke, as wide as a pen's, white on black."""
    stroke = range(side * 28 // 64, side * 36 // 64)
    inside = range(side // 8, side - side // 8)
    rows = (bytes(255 if x in stroke and y in inside else 0 for x in range(side)) for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)  # eight bits of grey
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


if __name__ == "__main__":
    sys.exit(main())
