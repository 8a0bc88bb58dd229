"""What the machine could do without a server: the bare decoder, the bare session, and both in a row.

These are the limits that a server's throughput is held against, measured in the same run, in turn with it. CPU times
are those of the threads that work, and do not depend on what else the machine does as much as the rates do.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from service.engine.runtime.options import DeviceOptions
from service.engine.runtime.session import OnnxSession
from service.images.preprocessing import decode_into, decode_with_pillow, prepare_pillow
from service.model.directory import ModelDirectory
from service.model.loading import preprocessing_of
from service.settings import Settings

JPEG_QUALITY = 90


def photos() -> list[bytes]:
    """Return scikit-learn's two photos, 640 x 427, as JPEG files."""
    files = []
    for photo in load_sample_images().images:
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG", quality=JPEG_QUALITY)
        files.append(buffer.getvalue())
    return files


@dataclass(frozen=True, slots=True)
class Measured:
    """What several threads did in a while: images per second of all, and CPU time of one image."""

    images_per_s: float
    cpu_ms: float


class Limits:
    """The decoder and the session without a server."""

    def __init__(self, model: ModelDirectory, files: Sequence[bytes], *, device: str = "cpu", threads: int = 0) -> None:
        prepare_pillow()
        manifest = model.manifest
        self._files = files
        self._outputs = (manifest.class_output,)
        self._shape = (manifest.input.height, manifest.input.width, 3)
        self._preprocessing = preprocessing_of(manifest, Settings())
        self._session = OnnxSession.load(
            model.model_path,
            DeviceOptions(
                device=device,
                threads=threads,
                cuda_graph_outputs=manifest.vectors,
                buckets=(1,),
                precision=manifest.precision,
            ),
            input_shape=self._shape,
            output_names=manifest.output_names,
        )
        self._session.run(np.zeros((1, *self._shape), np.uint8), self._outputs)

    def decoder(self, duration_s: float, *, threads: int | None = None) -> Measured:
        """Decode and resize as the service does."""
        return _in_threads(threads or _cores(), duration_s, self._decoder_step)

    def pillow(self, duration_s: float, *, threads: int | None = None) -> Measured:
        """Decode and resize by Pillow alone, step by step as the preprocessing was published."""
        return _in_threads(threads or _cores(), duration_s, self._pillow_step)

    def session(self, duration_s: float) -> Measured:
        """Run pixels that lie ready, one image a run, with the runtime's own threads; CPU time is the process's."""
        ready = np.zeros((1, *self._shape), np.uint8)
        images, began_s, cpu_s = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began_s < duration_s:
            self._session.run(ready, self._outputs)
            images += 1
        return Measured(images / (time.perf_counter() - began_s), (time.process_time() - cpu_s) * 1000 / images)

    def pipeline(self, duration_s: float, *, in_flight: int) -> Measured:
        """Decode in threads, ahead by up to `in_flight` images, and run each image as it comes."""
        images, began_s, cpu_s = 0, time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(_cores()) as decoders:
            waiting = [decoders.submit(self._decoded, index) for index in range(in_flight)]
            while waiting:
                self._session.run(waiting.pop(0).result()[None], self._outputs)
                images += 1
                if time.perf_counter() - began_s < duration_s:
                    waiting.append(decoders.submit(self._decoded, images))
        return Measured(images / (time.perf_counter() - began_s), (time.process_time() - cpu_s) * 1000 / images)

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        pixels = np.empty(self._shape, np.uint8)
        decode_into(self._files[index % len(self._files)], pixels, self._preprocessing)
        return pixels

    def _decoder_step(self) -> Callable[[int], None]:
        pixels = np.empty(self._shape, np.uint8)
        return lambda index: _discard(decode_into(self._files[index % len(self._files)], pixels, self._preprocessing))

    def _pillow_step(self) -> Callable[[int], None]:
        pixels = np.empty(self._shape, np.uint8)
        (height, width), crop = self._preprocessing.resize, self._preprocessing.crop
        top, left = round((height - crop[0]) / 2), round((width - crop[1]) / 2)

        def step(index: int) -> None:
            image = decode_with_pillow(self._files[index % len(self._files)], self._preprocessing)
            resized = image.resize((width, height), Image.Resampling.BICUBIC)
            pixels[...] = np.asarray(resized)[top : top + crop[0], left : left + crop[1]]

        return step


def _discard(_: object) -> None:
    """Take a result that only its making matters of."""


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _in_threads(threads: int, duration_s: float, make_step: Callable[[], Callable[[int], None]]) -> Measured:
    images, cpu_s = [0] * threads, [0.0] * threads
    ready = threading.Barrier(threads + 1)
    until_s = 0.0

    def work(number: int) -> None:
        step = make_step()
        step(number)
        ready.wait()
        began_s = time.thread_time()
        while time.perf_counter() < until_s:
            step(images[number])
            images[number] += 1
        cpu_s[number] = time.thread_time() - began_s

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in working:
        thread.start()
    began_s = time.perf_counter()
    until_s = began_s + duration_s
    ready.wait()
    for thread in working:
        thread.join()
    return Measured(sum(images) / (time.perf_counter() - began_s), sum(cpu_s) * 1000 / sum(images))
