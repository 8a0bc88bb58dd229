"""Throughput over HTTP beside what the same machine could do without HTTP: `python -m benchmarks.http MODEL`.

Three figures for each concurrency, all on the same photos and taken in turn, round after round, so that a noisy
machine disturbs them alike:

    http      images/s of a closed loop of clients against a server in its own process
    session   images/s of the bare session on pixels that lie ready, one image a run
    pipeline  images/s of decoding threads that feed that session, as many images in flight as the clients have

`http / pipeline` says what serving costs. Medians over the rounds; one image a request, JPEG as the raw body.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from service.engine.session import OnnxSession, runtime_version
from service.imaging import Preprocessing, decode_into, prepare_pillow
from service.repository import ModelDirectory, select_model

JPEG_QUALITY = 90
HEADERS = {"Content-Type": "image/jpeg"}


def photos() -> list[bytes]:
    """Return scikit-learn's two photos, 640 x 427, as JPEG files."""
    files = []
    for photo in load_sample_images().images:
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG", quality=JPEG_QUALITY)
        files.append(buffer.getvalue())
    return files


def rate(images: int, run: Callable[[], None]) -> float:
    """Return images per second of one call."""
    started = time.perf_counter()
    run()
    return images / (time.perf_counter() - started)


class Bare:
    """The session and the decoder without a server."""

    def __init__(self, model: ModelDirectory, files: list[bytes]) -> None:
        prepare_pillow()
        manifest = model.manifest
        self.shape = (manifest.input.height, manifest.input.width, 3)
        self.session = OnnxSession.load(
            model.model_path,
            device="cpu",
            input_shape=self.shape,
            output_names=tuple(output.name for output in manifest.outputs),
            threads=0,
        )
        self.preprocessing = Preprocessing.of(manifest, max_pixels=64_000_000, exif_orientation=False)
        self.files = files
        self.decoders = ThreadPoolExecutor(os.cpu_count())
        self.ready = self.decode(0)
        self.session.run(self.ready, ("logits",))

    def decode(self, index: int) -> np.ndarray:
        """Decode one photo into a batch of one."""
        pixels = np.empty((1, *self.shape), np.uint8)
        decode_into(self.files[index % len(self.files)], pixels[0], self.preprocessing)
        return pixels

    def run_session(self, images: int) -> None:
        """Run pixels that lie ready."""
        for _ in range(images):
            self.session.run(self.ready, ("logits",))

    def run_pipeline(self, images: int, in_flight: int) -> None:
        """Decode ahead by up to `in_flight` images, and run each as it comes."""
        waiting = [self.decoders.submit(self.decode, index) for index in range(min(in_flight, images))]
        for index in range(images):
            self.session.run(waiting.pop(0).result(), ("logits",))
            if index + in_flight < images:
                waiting.append(self.decoders.submit(self.decode, index + in_flight))


def post_photos(address: tuple[str, int], files: list[bytes], images: int, concurrency: int) -> None:
    """Classify `images` photos with `concurrency` clients, each on one connection, each waiting for its answers."""
    errors: list[str] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(*address)
        for index in range(number, images, concurrency):
            connection.request("POST", "/v1/classify", files[index % len(files)], HEADERS)
            response = connection.getresponse()
            body = response.read()
            if response.status != http.HTTPStatus.OK:
                errors.append(f"{response.status}: {body[:200]!r}")
                break
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(f"the server did not answer: {errors[0]}")


@contextlib.contextmanager
def server(repository: Path, model: str, port: int) -> Iterator[tuple[str, int]]:
    """Run a server in its own process until it is ready, and end it afterwards."""
    command = [sys.executable, "-m", "service", "--repository", str(repository), "--model", model]
    command += ["--device", "cpu", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command) as process:
        try:
            wait_until_ready(("127.0.0.1", port), process)
            yield "127.0.0.1", port
        finally:
            process.send_signal(signal.SIGTERM)


def wait_until_ready(address: tuple[str, int], process: subprocess.Popen[bytes]) -> None:
    """Return once /health/ready says 200; RuntimeError if the process ends before."""
    while process.poll() is None:
        connection = http.client.HTTPConnection(*address)
        try:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except ConnectionRefusedError:
            pass  # not listening yet
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"the server ended with status {process.returncode}")


def measure(model: ModelDirectory, address: tuple[str, int], arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Return one row a concurrency: medians of the rounds."""
    files = photos()
    bare = Bare(model, files)
    images = arguments.images
    rounds: dict[int, list[tuple[float, float, float]]] = {number: [] for number in arguments.concurrency}
    for number in range(arguments.rounds + 1):
        for concurrency, taken in rounds.items():
            figures = (
                rate(images, lambda c=concurrency: post_photos(address, files, images, c)),  # type: ignore[misc]
                rate(images, lambda: bare.run_session(images)),
                rate(images, lambda c=concurrency: bare.run_pipeline(images, c)),  # type: ignore[misc]
            )
            if number > 0:  # the first round warms up
                taken.append(figures)
    rows = []
    for concurrency, taken in rounds.items():
        http_rate, session, pipeline = (statistics.median(column) for column in zip(*taken, strict=True))
        ratio = statistics.median(one[0] / one[2] for one in taken)
        rows.append(
            {
                "concurrency": concurrency,
                "http": http_rate,
                "session": session,
                "pipeline": pipeline,
                "http_over_pipeline": ratio,
            }
        )
    return rows


def main() -> None:
    """Measure one model and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="dat_demo")
    parser.add_argument("--repository", type=Path, default=Path("model-repository"))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--images", type=int, default=64, help="images per figure and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = select_model(arguments.repository, name=arguments.model)
    with server(arguments.repository, arguments.model, arguments.port) as address:
        rows = measure(model, address, arguments)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, onnxruntime {runtime_version()}"
    if arguments.json:
        print(json.dumps({"model": arguments.model, "machine": machine, "rows": rows}, indent=2))
        return
    print(f"{arguments.model} on {machine}; images/s, medians of {arguments.rounds} rounds")
    print(f"{'concurrency':>11} {'http':>8} {'session':>8} {'pipeline':>8} {'http/pipeline':>13}")
    for row in rows:
        print(
            f"{row['concurrency']:>11.0f} {row['http']:>8.1f} {row['session']:>8.1f} {row['pipeline']:>8.1f}"
            f" {row['http_over_pipeline']:>13.3f}"
        )


if __name__ == "__main__":
    main()
