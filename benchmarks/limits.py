"""What the machine could do without a server: the decoder's limit and the bare session's, on the same photos."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from service.engine.session import OnnxSession
from service.imaging import Preprocessing, decode_into, decode_with_pillow, prepare_pillow, resize_and_crop
from service.repository import ModelDirectory

JPEG_QUALITY = 90
MAX_PIXELS = 64_000_000


def write_photos(folder: Path) -> list[Path]:
    """Write scikit-learn's two photos, 640 x 427, as JPEG files and return their paths."""
    paths = []
    for index, photo in enumerate(load_sample_images().images):
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG", quality=JPEG_QUALITY)
        path = folder / f"photo{index}.jpg"
        path.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate in images/s, and the CPU time in ms that an image took."""

    images_per_s: float
    cpu_ms: float


class Limits:
    """The decoder and the session of one model, on the CPU."""

    def __init__(self, model: ModelDirectory, files: list[bytes]) -> None:
        prepare_pillow()
        manifest = model.manifest
        self._files = files
        self._shape = (manifest.input.height, manifest.input.width, 3)
        self._preprocessing = Preprocessing.of(manifest, max_pixels=MAX_PIXELS, exif_orientation=False)
        self._threads = ThreadPoolExecutor(os.cpu_count())
        self._session = OnnxSession.load(
            model.model_path,
            device="cpu",
            input_shape=self._shape,
            output_names=tuple(output.name for output in manifest.outputs),
        )
        self._one = np.zeros((1, *self._shape), np.uint8)
        self._session.run(self._one, ("logits",))

    def decoder(self, duration_s: float) -> Limit:
        """Decode as the service does, on one thread a core."""

        def decode(data: bytes) -> None:
            decode_into(data, np.empty(self._shape, np.uint8), self._preprocessing)

        return self._decode(decode, duration_s)

    def pillow(self, duration_s: float) -> Limit:
        """Decode with Pillow alone, on one thread a core: what a service has that does no better."""

        def decode(data: bytes) -> None:
            resize_and_crop(decode_with_pillow(data, self._preprocessing), self._preprocessing)

        return self._decode(decode, duration_s)

    def _decode(self, decode: Callable[[bytes], None], duration_s: float) -> Limit:
        until_s = time.perf_counter() + duration_s

        def work(first: int) -> int:
            done = 0
            while time.perf_counter() < until_s:
                decode(self._files[(first + done) % len(self._files)])
                done += 1
            return done

        cpu_s, began_s = time.process_time(), time.perf_counter()
        images = sum(self._threads.map(work, range(os.cpu_count() or 1)))
        return Limit(images / (time.perf_counter() - began_s), (time.process_time() - cpu_s) / images * 1000)

    def session(self, duration_s: float) -> Limit:
        """Run one image after the other, with the runtime's threads on every core."""
        images, cpu_s, began_s = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - began_s < duration_s:
            self._session.run(self._one, ("logits",))
            images += 1
        return Limit(images / (time.perf_counter() - began_s), (time.process_time() - cpu_s) / images * 1000)
