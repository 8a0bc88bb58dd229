"""Which requests are sampled, and the way of what is kept of them from the event loop to the folder.

A request is chosen at its beginning, by chance, and what its images were answered is taken when it has ended well. It
waits in memory, at most `_WAITING_BYTES` of it, until a thread makes a file of all that waits: every `every_s`, or
sooner where that is much. What finds no room is dropped; what cannot be written is lost. Both are counted, and no
request waits for either.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from service.engine.named_thread import NamedThread
from service.engine.types import Answer
from service.errors import SettingsError
from service.model.directory import ModelDirectory
from service.model.manifest import EMBEDDING
from service.samples.folder import SampleFolder
from service.samples.records import File, SampledImage, SampledRequest
from service.settings import Settings, option_of

SampledOutcome = Literal["written", "dropped", "failed"]

_EVERY_S = 30.0
_FILE_BYTES = 8 << 20
_WAITING_BYTES = 32 << 20
_ROW_BYTES = 256
"""What a row takes in memory beside its arrays, its file and its name, about."""
_log = logging.getLogger(__name__)


class Sampler:
    """Takes a share of the requests of one process; all but its thread belongs to the event loop.

    `counted` is told how images ended, in any thread.
    """

    def __init__(
        self, settings: Settings, folder: SampleFolder, *, counted: Callable[[SampledOutcome, int], None]
    ) -> None:
        self._rate = settings.sample_rate
        self._with_images = settings.sample_images
        self._with_names = settings.sample_names
        # A file is hardly larger than what it is made of, and must find room.
        self._file_bytes = min(_FILE_BYTES, settings.sample_max_bytes // 4)
        self._most_bytes = min(_WAITING_BYTES, settings.sample_max_bytes // 2)
        self._folder = folder
        self._counted = counted
        self._random = random.SystemRandom()
        self._wake = threading.Condition()  # over the three below
        self._waiting: list[SampledRequest] = []
        self._waiting_bytes = 0
        self._ended = False
        self._is_failing = False
        self._thread: NamedThread | None = None
        for outcome in get_args(SampledOutcome):
            counted(outcome, 0)  # Prometheus sees no rise in what begins at 1

    def start(self, *, every_s: float = _EVERY_S) -> None:
        """Begin to write what is taken; it waits for about `every_s` at most."""
        self._thread = NamedThread(target=self._run, args=(every_s,), name="sample-writer", daemon=True)
        self._thread.start()

    def chooses(self) -> bool:
        """Return whether a request that begins is one of the sample."""
        return self._random.random() < self._rate

    def image(
        self, place: int, model: ModelDirectory, answer: Answer, file: File | None, name: str | None
    ) -> SampledImage:
        """Return what is to be kept of an image; large outputs are let go."""
        names = (model.manifest.class_output, EMBEDDING)
        outputs = {each: answer.outputs[each] for each in names if each in answer.outputs}
        return SampledImage(place, outputs, file if self._with_images else None, name if self._with_names else None)

    def take(self, request: SampledRequest) -> None:
        """Keep a request that has been answered, or drop it where too much waits; returns at once."""
        images = [image for image in request.images if image.outputs]
        if not images:
            return
        size_bytes = sum(_size_bytes(image) for image in images)
        if self._waiting_bytes + size_bytes > self._most_bytes:
            self._counted("dropped", len(images))
            return
        images = [each._replace(file=_without_its_body(each.file)) for each in images]
        with self._wake:
            self._waiting.append(request._replace(images=images))
            self._waiting_bytes += size_bytes
            if self._waiting_bytes >= self._file_bytes:
                self._wake.notify()

    def stop(self, timeout_s: float) -> None:
        """Have all that waits written, for so long at most."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, every_s: float) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._ended or self._waiting_bytes >= self._file_bytes, every_s)
                requests, self._waiting, self._waiting_bytes = self._waiting, [], 0
                ended = self._ended
            for of_version in _by_version(requests):
                self._write(of_version)
            if ended:
                return

    def _write(self, requests: Sequence[SampledRequest]) -> None:
        """Write the requests to one version as a file, and count its images; whatever happens, the thread goes on."""
        from service.samples.columns import sample_as_parquet

        model, images = requests[0].model, sum(len(request.images) for request in requests)
        try:
            content = sample_as_parquet(model, requests, with_images=self._with_images, with_names=self._with_names)
            self._folder.add(model.manifest.name, model.manifest.version, content)
        except Exception as error:
            self._counted("failed", images)
            if not self._is_failing:  # once, and not for every file
                # Others than the system's may quote what they were given.
                reason = str(error) if isinstance(error, OSError) else type(error).__name__
                _log.error("the sample of requests cannot be written: %s", reason)
            self._is_failing = True
        else:
            self._counted("written", images)
            if self._is_failing:
                _log.info("the sample of requests is written again")
            self._is_failing = False


def _by_version(requests: Iterable[SampledRequest]) -> Iterable[list[SampledRequest]]:
    """Return requests by the version that answered, of which there may be two with one number, one after the other."""
    versions: dict[int, list[SampledRequest]] = {}
    for request in requests:
        versions.setdefault(id(request.model), []).append(request)
    return versions.values()


def _without_its_body(file: File | None) -> File | None:
    """Return a file for which the body that it came in need not be kept."""
    return bytes(file) if isinstance(file, memoryview) else file


def _size_bytes(image: SampledImage) -> int:
    arrays = sum(array.nbytes for array in image.outputs.values())
    return _ROW_BYTES + arrays + len(image.file or b"") + len(image.name or "")


def require_sampling(settings: Settings) -> SampleFolder | None:
    """Return the folder of the sample, made and tried, None where there is to be none.

    Raises SettingsError where it cannot be written in, or what writes Parquet is not installed.
    """
    if settings.sample_requests is None:
        return None
    option = option_of("sample_requests")
    try:
        import service.samples.columns  # noqa: F401  # here, and not as the first file is written
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{option}: {error.name} is not installed; requirements/bulk.txt has what writing Parquet needs"
        ) from error
    folder = SampleFolder(settings.sample_requests, max_bytes=settings.sample_max_bytes)
    try:
        folder.prepare()
    except OSError as error:
        raise SettingsError(f"{option}: {settings.sample_requests} cannot be written in: {error.strerror}") from error
    return folder


def load_sampler(settings: Settings, *, counted: Callable[[SampledOutcome, int], None]) -> Sampler | None:
    """Return what takes the sample, not started, None where there is to be none; raises as `require_sampling`."""
    folder = require_sampling(settings)
    return None if folder is None else Sampler(settings, folder, counted=counted)
