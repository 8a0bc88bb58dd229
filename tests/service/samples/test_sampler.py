"""What is kept of requests, in a served application: who is sampled, what of them, and that nobody waits for it."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from service.engine.types import Answer
from service.errors import SettingsError
from service.model.directory import ModelDirectory
from service.samples import sampler as module
from service.samples.folder import LOCK_FILE, SampleFolder
from service.samples.records import SampledRequest
from service.samples.sampler import Sampler, require_sampling
from service.settings import load_settings
from service.telemetry.metrics import Metrics
from tests.service import tiny_model
from tests.service.conftest import PATIENCE_S, serving
from tests.service.http.routes.v2.bodies import PATH, binary, document, tensor
from tests.service.pictures import photo

ROOT = Path(__file__).parents[3]
PNG = {"Content-Type": "image/png"}
EMBEDDING = np.arange(3, dtype=np.float32)
LOGITS = np.arange(tiny_model.CLASSES, dtype=np.float32)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all files, in the order of their requests' ends."""
    rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: (row["time"], row["image"]))


def sampler_of(folder: Path, metrics: Metrics, **settings: object) -> Sampler:
    chosen = load_settings(
        {"sample_requests": str(folder), "sample_rate": "1", **{name: str(value) for name, value in settings.items()}},
        environment={},
    )
    kept = require_sampling(chosen)
    assert kept is not None
    return Sampler(chosen, kept, counted=metrics.images_sampled)


def request(model: ModelDirectory, sampler: Sampler, *, file: Any = None, **outputs: Any) -> SampledRequest:
    answer = Answer(outputs or {"logits": LOGITS}, None)  # type: ignore[arg-type]
    return SampledRequest(1.0, "id", "/v1/classify", model, 5, [sampler.image(0, model, answer, file, "a.png")])


def outcomes(metrics: Metrics) -> dict[str, float]:
    value = metrics.registry.get_sample_value
    return {each: value("dat_sampled_images_total", {"outcome": each}) for each in ("written", "dropped", "failed")}


async def test_answers_are_kept_without_what_was_not_asked_for(model: ModelDirectory, tmp_path: Path) -> None:
    headers = {"X-Request-ID": "mine", "Authorization": "Bearer x", "X-Forwarded-For": "192.0.2.1"}
    async with serving(model, sample_requests=tmp_path / "s", sample_rate=1) as served:
        http = served.http
        files = [("image", ("hush.png", photo(seed=seed), "image/png")) for seed in range(2)]
        classified = await http.post("/v1/classify?top_k=2", files=files, headers=headers)
        both = await http.post(
            "/v1/features?outputs=logits&outputs=embedding&outputs=stage1", content=photo(), headers=PNG
        )
        alone = await http.post("/v1/features", content=photo(), headers=PNG)
        refused = await http.post("/v1/classify", content=b"hush", headers=PNG)
        await http.post("/v1/features?outputs=stage1", content=photo(), headers=PNG)
        assert [each.status_code for each in (classified, both, alone, refused)] == [200, 200, 200, 422]
    assert served.sample("dat_sampled_images_total", outcome="written") == 4
    rows = rows_in(tmp_path / "s")
    assert list(rows[0]) == ["time", "request_id", "route", "image", "predictions", "embedding"]
    assert [(row["request_id"] == "mine", row["route"], row["image"]) for row in rows] == [
        (True, "/v1/classify", 0), (True, "/v1/classify", 1), (False, "/v1/features", 0), (False, "/v1/features", 0),
    ]  # fmt: skip
    for row, result in zip(rows, classified.json()["results"], strict=False):
        assert row["embedding"] is None
        assert len(row["predictions"]) == 5  # as the settings say, whatever a request asks
        for kept, told in zip(row["predictions"], result["predictions"], strict=False):
            assert (kept["class_id"], kept["label"]) == (told["class_id"], told["label"])
            assert kept["score"] == pytest.approx(told["score"], rel=1e-6)
    for row, response in ((rows[2], both), (rows[3], alone)):
        np.testing.assert_allclose(row["embedding"], response.json()["results"][0]["features"]["embedding"])
    assert rows[2]["predictions"]
    assert rows[3]["predictions"] is None
    content = b"".join(path.read_bytes() for path in (tmp_path / "s").iterdir())
    assert not any(secret in content for secret in (b"hush", b"Bearer", b"192.0.2.1"))


async def test_files_and_their_names_are_kept_where_that_is_asked_for(model: ModelDirectory, tmp_path: Path) -> None:
    asked = {"sample_requests": tmp_path, "sample_rate": 1, "sample_images": True, "sample_names": True}
    name = "\N{SNOWMAN}\udc80.png".encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    async with serving(model, **asked) as served:
        await served.http.post("/v1/classify", files=[("image", (name, photo(), "image/png"))])
        await served.http.post("/v1/classify", content=photo(seed=1), headers=PNG)
        await served.http.post(PATH, **binary(document(tensor())))  # pixels, of which there is no file
        await served.http.post("/v1/classify", json={"images": []})
    rows = rows_in(tmp_path)
    assert [row["file"] for row in rows] == [photo(), photo(seed=1), None]
    assert [row["name"] for row in rows] == [name, None, None]


def test_nothing_is_imported_where_it_is_off() -> None:
    code = "import sys, service.http.app, service.commands.serve; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert require_sampling(load_settings({}, environment={})) is None


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_share_is_that_of_the_settings(tmp_path: Path, rate: float) -> None:
    sampler = sampler_of(tmp_path, Metrics(), sample_rate=rate)
    chosen = sum(sampler.chooses() for _ in range(20_000)) / 20_000
    assert chosen == pytest.approx(rate, abs=0.02)  # more than six standard deviations


def test_a_write_that_hangs_holds_up_nobody_and_what_waits_is_bounded(
    model: ModelDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, released = threading.Event(), threading.Event()
    add = SampleFolder.add

    def hanging(*arguments: Any) -> Path:
        hangs.set()
        assert released.wait(PATIENCE_S)
        return add(*arguments)

    monkeypatch.setattr(SampleFolder, "add", hanging)
    metrics = Metrics()
    sampler = sampler_of(tmp_path, metrics, sample_images=True, sample_max_bytes=1 << 20)
    sampler.start(every_s=PATIENCE_S)
    file = bytes(1 << 16)
    for _ in range(4):  # a quarter of the space makes a file
        sampler.take(request(model, sampler, file=file))
    assert hangs.wait(PATIENCE_S)
    for _ in range(20):
        sampler.take(request(model, sampler, file=memoryview(file)))
    dropped = outcomes(metrics)["dropped"]
    assert dropped == 13  # half of the space waits at most
    sampler.stop(0.0)
    assert outcomes(metrics)["written"] == 0
    released.set()
    sampler.stop(PATIENCE_S)
    assert outcomes(metrics) == {"written": 24 - dropped, "dropped": dropped, "failed": 0}


def test_failing_writes_are_said_once_and_counted_and_work_again(
    model: ModelDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    failure: list[Callable[[], Exception]] = [lambda: OSError(errno.ENOSPC, "No space left on device")]
    tried = threading.Semaphore(0)
    add = SampleFolder.add

    def failing(*arguments: Any) -> Path:
        try:
            if failure:
                raise failure[0]()
            return add(*arguments)
        finally:
            tried.release()

    monkeypatch.setattr(SampleFolder, "add", failing)
    metrics = Metrics()
    sampler = sampler_of(tmp_path, metrics)
    sampler.start(every_s=0.001)

    def take() -> None:
        sampler.take(request(model, sampler))
        assert tried.acquire(timeout=PATIENCE_S)

    take()
    take()
    failure[0] = lambda: ValueError("hush")  # a fault of ours, which might quote a request
    take()
    failure.clear()
    take()
    sampler.stop(PATIENCE_S)
    assert outcomes(metrics) == {"written": 1, "dropped": 0, "failed": 3}
    assert [each.getMessage() for each in caplog.records if each.name == module.__name__] == [
        "the sample of requests cannot be written: [Errno 28] No space left on device",
        "the sample of requests is written again",
    ]


async def test_a_folder_that_goes_away_fails_no_request(model: ModelDirectory, tmp_path: Path) -> None:
    async with serving(model, sample_requests=tmp_path / "s", sample_rate=1) as served:
        (tmp_path / "s" / LOCK_FILE).unlink()
        (tmp_path / "s").rmdir()
        assert (await served.http.post("/v1/classify", content=photo(), headers=PNG)).status_code == 200
    assert served.sample("dat_sampled_images_total", outcome="failed") == 1


def test_logits_that_are_no_numbers_have_no_predictions(model: ModelDirectory, tmp_path: Path) -> None:
    sampler = sampler_of(tmp_path, Metrics())
    sampler.start()
    sampler.take(request(model, sampler, logits=LOGITS * np.nan, embedding=EMBEDDING))
    sampler.stop(PATIENCE_S)
    (row,) = rows_in(tmp_path)
    assert (row["predictions"], row["embedding"]) == (None, EMBEDDING.tolist())


@pytest.mark.parametrize("place", ["absent/s", "file", "file/s", "/proc/s"])
def test_a_folder_that_cannot_be_written_in_is_said_at_the_start(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    settings = load_settings({"sample_requests": str(tmp_path / place)}, environment={})
    with pytest.raises(SettingsError, match=r"--sample-requests: .* cannot be written in: "):
        require_sampling(settings)


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["pyarrow"] = None
from service.__main__ import main
sys.exit(main(["serve", "--sample-requests", sys.argv[1]]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "--sample-requests: pyarrow is not installed; requirements/bulk.txt" in ran.stderr
