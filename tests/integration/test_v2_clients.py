"""The Open Inference Protocol as Triton's and KServe's own clients speak it to a live server."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from service.model.directory import ModelDirectory, open_model
from tests.integration.conftest import PATIENCE_S, ROOT, service_process, service_thread
from tests.service import tiny_model
from tests.service.fixed_hosting import FakeControl
from tests.service.pictures import expected, photo, pixels

MODEL, VERSION, SIZE = tiny_model.NAME, str(tiny_model.VERSION), tiny_model.SIZE
OUTPUTS = tuple(tiny_model.shapes())
BATCH = np.stack([pixels(SIZE, SIZE, seed=seed) for seed in range(3)])
REFERENCE = tiny_model.reference(BATCH)
PHOTOS = [photo("JPEG", seed=1), photo("PNG", seed=2)]
KSERVE = ROOT / ".venv" / "kserve" / "bin" / "python"


@pytest.fixture(scope="module", params=["1", "2"], ids=["one-worker", "two-workers"])
def port(request: pytest.FixtureRequest, repository: Path) -> Iterator[int]:
    with service_process(repository, "--workers", request.param, "--max-body-bytes", "2000000") as process:
        yield process.port


@pytest.fixture
def client(port: int) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=8, network_timeout=PATIENCE_S) as client:
        yield client


def image_input(values: NDArray[Any], datatype: str = "UINT8", *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def files_input(*files: bytes, column: bool = False) -> triton.InferInput:
    values = np.array(files, np.object_)
    return image_input(values[:, None] if column else values, "BYTES")


def asked(*names: str, **options: Any) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, **options) for name in names]


def assert_like(result: Any, outputs: tuple[str, ...], reference: dict[str, NDArray[np.float32]] = REFERENCE) -> None:
    for name in outputs:
        assert result.as_numpy(name).dtype == np.float32
        np.testing.assert_allclose(result.as_numpy(name), reference[name], atol=1e-3)


def of_photos(output: str) -> NDArray[np.float32]:
    return np.stack([expected(data, output) for data in PHOTOS])


def test_server_and_model_describe_themselves(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, VERSION)
    assert not client.is_model_ready("other")
    assert not client.is_model_ready(MODEL, "4")
    server = client.get_server_metadata()
    assert {"binary_tensor_data", "classification", "statistics", "model_configuration"} <= set(server["extensions"])
    metadata = client.get_model_metadata(MODEL)
    assert metadata == client.get_model_metadata(MODEL, VERSION)
    assert metadata["versions"] == [VERSION]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, tiny_model.CLASSES]}]
    config = client.get_model_config(MODEL, VERSION)
    assert config["max_batch_size"] == 64
    assert config["input"][0]["format"] == "FORMAT_NHWC"
    assert config["input"][0]["dims"] == [SIZE, SIZE, 3]
    assert [output["name"] for output in config["output"]] == ["logits"]


def test_image_files_are_described_to_those_who_ask_for_them(client: triton.InferenceServerClient) -> None:
    """So that a load generator that makes its requests from the metadata can send files."""
    headers = {"X-Image-Datatype": "BYTES"}
    metadata = client.get_model_metadata(MODEL, headers=dict(headers))
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
    described = client.get_model_config(MODEL, headers=dict(headers))["input"][0]
    assert (described["data_type"], described["dims"]) == ("TYPE_STRING", [1])
    result = client.infer(MODEL, [files_input(*PHOTOS, column=True)], headers=dict(headers))
    np.testing.assert_allclose(result.as_numpy("logits"), of_photos("logits"), atol=1e-3)


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary-in", "json-in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary-out", "json-out"])
def test_every_output_in_either_form(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    result = client.infer(
        MODEL,
        [image_input(BATCH, binary=binary_in)],
        model_version=VERSION,
        outputs=asked(*OUTPUTS, binary_data=binary_out),
        request_id="request 7",
    )
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("request 7", MODEL, VERSION)
    assert [output["name"] for output in response["outputs"]] == list(OUTPUTS)
    assert_like(result, OUTPUTS)


@pytest.mark.parametrize("datatype", [np.float32, np.float16])
@pytest.mark.parametrize("binary", [True, False])
def test_whole_pixels_of_other_types_get_the_same_answer(
    client: triton.InferenceServerClient, datatype: type, binary: bool
) -> None:
    name = {np.float32: "FP32", np.float16: "FP16"}[datatype]
    result = client.infer(MODEL, [image_input(BATCH.astype(datatype), name, binary=binary)])
    exact = client.infer(MODEL, [image_input(BATCH)])
    np.testing.assert_allclose(result.as_numpy("logits"), exact.as_numpy("logits"), atol=1e-5)


def test_outputs_that_nobody_named_are_those_of_the_metadata(client: triton.InferenceServerClient) -> None:
    result = client.infer(MODEL, [image_input(BATCH)])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["logits"]
    assert_like(result, ("logits",))


@pytest.mark.parametrize("column", [False, True])
def test_image_files_are_decoded_as_everywhere(client: triton.InferenceServerClient, column: bool) -> None:
    result = client.infer(MODEL, [files_input(*PHOTOS, column=column)], outputs=asked("logits", "embedding"))
    for name in ("logits", "embedding"):
        np.testing.assert_allclose(result.as_numpy(name), of_photos(name), atol=1e-3)


def test_image_files_in_json_are_base64(client: triton.InferenceServerClient) -> None:
    encoded = np.array([base64.b64encode(data) for data in PHOTOS], np.object_)
    result = client.infer(MODEL, [image_input(encoded, "BYTES", binary=False)])
    np.testing.assert_allclose(result.as_numpy("logits"), of_photos("logits"), atol=1e-3)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_bodies_compressed_both_ways(client: triton.InferenceServerClient, coding: str, binary: bool) -> None:
    result = client.infer(
        MODEL,
        [image_input(BATCH, binary=binary)],
        outputs=asked(*OUTPUTS, binary_data=binary),
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert_like(result, OUTPUTS)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answer_is_compressed_where_it_is_asked_for(port: int, coding: str) -> None:
    body = {"inputs": [{"name": "image", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8", "data": [7] * SIZE**2 * 3}]}
    asked_for = {**body, "outputs": [{"name": "stage1"}]}
    url = f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer"
    compressed = httpx.post(url, json=asked_for, headers={"Accept-Encoding": coding})
    plain = httpx.post(url, json=asked_for, headers={"Accept-Encoding": "identity"})
    assert compressed.headers["content-encoding"] == coding
    assert "content-encoding" not in plain.headers
    assert compressed.json() == plain.json()
    assert int(compressed.headers["content-length"]) < int(plain.headers["content-length"])


@pytest.mark.parametrize("binary", [True, False])
def test_classification_names_the_highest_values(client: triton.InferenceServerClient, binary: bool) -> None:
    result = client.infer(MODEL, [image_input(BATCH)], outputs=asked("logits", class_count=3, binary_data=binary))
    answers = result.as_numpy("logits")
    assert answers.shape == (3, 3)
    for row, logits in zip(answers, REFERENCE["logits"], strict=True):
        best = np.argsort(-logits)[:3]
        for text, index in zip(row, best, strict=True):
            value, place, label = (text if isinstance(text, str) else text.decode()).split(":")
            assert (int(place), label) == (index, tiny_model.LABELS[index])
            assert float(value) == pytest.approx(logits[index], abs=1e-3)


def test_half_precision_outputs_where_they_are_asked_for(port: int) -> None:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": list(BATCH.shape),
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": BATCH.nbytes},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"datatype": "FP16", "binary_data": True}}],
        }
    ).encode()
    url = f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer"
    response = httpx.post(
        url, content=header + BATCH.tobytes(), headers={"Inference-Header-Content-Length": str(len(header))}
    )
    length = int(response.headers["inference-header-content-length"])
    assert json.loads(response.content[:length])["outputs"][0]["datatype"] == "FP16"
    logits = np.frombuffer(response.content[length:], "<f2").reshape(3, -1)
    np.testing.assert_array_equal(logits, REFERENCE["logits"].astype(np.float16))


def test_raw_body_is_the_pixels_of_one_image_or_its_file(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer"
    for body, headers, reference in [
        (BATCH[0].tobytes(), {}, REFERENCE["logits"][0]),
        (PHOTOS[0], {"X-Image-Datatype": "BYTES"}, expected(PHOTOS[0], "logits")),
    ]:
        response = httpx.post(url, content=body, headers={"Inference-Header-Content-Length": "0", **headers})
        length = int(response.headers["inference-header-content-length"])
        assert json.loads(response.content[:length])["outputs"][0]["shape"] == [1, tiny_model.CLASSES]
        np.testing.assert_allclose(np.frombuffer(response.content[length:], "<f4"), reference, atol=1e-3)


def test_requests_in_flight_together_keep_their_answers_apart(client: triton.InferenceServerClient) -> None:
    batches = [np.stack([pixels(SIZE, SIZE, seed=seed)] * (1 + seed % 3)) for seed in range(12)]
    waiting = [client.async_infer(MODEL, [image_input(batch)], priority=1 + n % 2) for n, batch in enumerate(batches)]
    for request, batch in zip(waiting, batches, strict=True):
        assert_like(request.get_result(), ("logits",), tiny_model.reference(batch))


async def test_asynchronous_client_does_the_same(port: int) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}", conn_timeout=PATIENCE_S) as client:
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL)
        assert (await client.get_model_metadata(MODEL))["name"] == MODEL
        assert (await client.get_model_repository_index())[0]["state"] == "READY"
        results = await asyncio.gather(
            client.infer(MODEL, [image_input(BATCH)], outputs=asked(*OUTPUTS)),
            client.infer(MODEL, [image_input(BATCH, binary=False)], outputs=asked(*OUTPUTS, binary_data=False)),
            *(
                client.infer(
                    MODEL,
                    [image_input(BATCH)],
                    outputs=asked(*OUTPUTS),
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
                for coding in ("gzip", "deflate")
            ),
        )
        for result in results:
            assert_like(result, OUTPUTS)
        with pytest.raises(InferenceServerException, match="no 'nothing'"):
            await client.infer(MODEL, [image_input(BATCH)], outputs=asked("nothing"))


def test_statistics_count_every_process(client: triton.InferenceServerClient, port: int) -> None:
    before = client.get_inference_statistics(MODEL, VERSION)["model_stats"][0]

    def ask(_: int) -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=PATIENCE_S) as other:
            other.infer(MODEL, [image_input(BATCH)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(8)))
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, [image_input(BATCH)], outputs=asked("nothing"))
    after = client.get_inference_statistics()["model_stats"][0]
    assert (after["name"], after["version"]) == (MODEL, VERSION)
    assert after["inference_count"] - before["inference_count"] == 24
    assert 1 <= after["execution_count"] - before["execution_count"] <= 24
    assert after["last_inference"] > 0
    grown = {
        name: after["inference_stats"][name]["count"] - old["count"] for name, old in before["inference_stats"].items()
    }
    timed = {"success", "queue", "compute_input", "compute_infer", "compute_output"}
    assert grown == {**dict.fromkeys(timed, 8), "fail": 1, "cache_hit": 0, "cache_miss": 0}
    for name in ("success", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][name]["ns"] > before["inference_stats"][name]["ns"]
    runs = sum(batch["compute_infer"]["count"] for batch in after["batch_stats"])
    assert runs == after["execution_count"]


def test_repository_without_model_control_stays_as_it_is(client: triton.InferenceServerClient) -> None:
    assert client.get_model_repository_index() == [{"name": MODEL, "version": VERSION, "state": "READY", "reason": ""}]
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="--model-control is off") as raised:
            change(MODEL)
        assert raised.value.status() == "403"
    assert client.is_model_ready(MODEL)


def states_of(client: triton.InferenceServerClient) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}


def test_models_are_unloaded_and_loaded_at_run_time(model: ModelDirectory, tmp_path: Path) -> None:
    other = open_model(tiny_model.write(tmp_path, name="other", version=1, size=2 * SIZE, seed=8))
    control = FakeControl()
    image = np.stack([pixels(2 * SIZE, 2 * SIZE)])
    reference = tiny_model.reference(image, seed=8)
    with (
        service_thread(model, others=[other], control=control) as running,
        triton.InferenceServerClient(f"127.0.0.1:{running.port}", network_timeout=PATIENCE_S) as client,
    ):
        assert states_of(client) == {MODEL: "READY", "other": "READY"}
        assert_like(client.infer("other", [image_input(image)]), ("logits",), reference)
        client.unload_model("other", unload_dependents=True)
        assert states_of(client) == {MODEL: "READY", "other": "UNAVAILABLE"}
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert not client.is_model_ready("other")
        with pytest.raises(InferenceServerException, match="unloaded"):
            client.infer("other", [image_input(image)])
        client.load_model("other")
        assert_like(client.infer("other", [image_input(image)]), ("logits",), reference)
        control.failures["other"] = "other version 2 does not match its sha256"
        for call, status, message in (
            ({"model_name": "other"}, "422", "does not match its sha256"),
            ({"model_name": "none"}, "404", "no model 'none'"),
            ({"model_name": "other", "config": "{}"}, "400", "as it was exported"),
        ):
            with pytest.raises(InferenceServerException, match=message) as raised:
                client.load_model(**call)
            assert raised.value.status() == status
        assert client.is_model_ready("other")
        statistics = client.get_inference_statistics()["model_stats"]
        assert {each["name"]: each["inference_count"] for each in statistics} == {MODEL: 0, "other": 2}


def errors() -> dict[str, tuple[dict[str, Any], str, str]]:
    """What a client may do wrong: how it calls, the status, and what the message says."""
    good = image_input(BATCH)
    unequal = BATCH.astype(np.float32)
    unequal[1, 0, 0, 0] = 0.5
    misnamed = triton.InferInput("picture", list(BATCH.shape), "UINT8")
    misnamed.set_data_from_numpy(BATCH)
    return {
        "model": ({"model_name": "other", "inputs": [good]}, "404", "no model 'other'"),
        "version": ({"inputs": [good], "model_version": "9"}, "404", "no version '9'"),
        "output": ({"inputs": [good], "outputs": asked("x")}, "400", "no 'x'"),
        "input": ({"inputs": [misnamed]}, "400", "no input 'picture'"),
        "inputs": ({"inputs": [good, good]}, "400", "2 inputs"),
        "type": ({"inputs": [image_input(BATCH.astype(np.int32), "INT32")]}, "400", "INT32"),
        "shape": ({"inputs": [image_input(BATCH[0])]}, "400", r"shape"),
        "pixels": ({"inputs": [image_input(unequal, "FP32")]}, "422", "Image 1: The pixels"),
        "file": ({"inputs": [files_input(PHOTOS[0], b"text")]}, "422", "Image 1: Not an image"),
        "images": ({"inputs": [files_input(*[b"x"] * 65)]}, "413", "more than 64 images"),
        "bytes": ({"inputs": [files_input(bytes(2_000_001))]}, "413", "larger than 2000000 bytes"),
        "bomb": (
            {"inputs": [files_input(bytes(2_000_001))], "request_compression_algorithm": "gzip"},
            "413",
            "larger than 2000000 bytes",
        ),
        "priority": ({"inputs": [good], "priority": 3}, "400", "'priority'"),
        "sequence": ({"inputs": [good], "sequence_id": 4}, "400", "sequence_id"),
        "timeout": ({"inputs": [good], "timeout": 1}, "504", "deadline"),
        "query": ({"inputs": [good], "query_params": {"priority": "urgent"}}, "422", "priority"),
    }


@pytest.mark.parametrize("wrong", list(errors()))
def test_errors_reach_the_client_as_the_protocol_has_them(client: triton.InferenceServerClient, wrong: str) -> None:
    call, status, message = errors()[wrong]
    with pytest.raises(InferenceServerException) as raised:
        client.infer(**{"model_name": MODEL, **call})
    assert raised.value.status() == status
    assert message in raised.value.message()
    assert client.is_model_ready(MODEL)


def test_kserves_client_gets_the_same(port: int, tmp_path: Path) -> None:
    assert KSERVE.exists(), (
        f"{KSERVE} is missing: KServe's client has an environment of its own, which `make test` makes"
    )
    np.save(tmp_path / "pixels.npy", BATCH)
    (tmp_path / "photo").write_bytes(PHOTOS[0])
    script = Path(__file__).with_name("kserve_client.py")
    arguments = [f"http://127.0.0.1:{port}", MODEL, str(tmp_path / "pixels.npy"), str(tmp_path / "photo")]
    ended = subprocess.run(
        [KSERVE, script, *arguments], capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert (said["live"], said["ready"], said["model_ready"]) == (True, True, True)
    for form in ("json", "binary", "fp32", "file"):
        assert (said[form]["id"], said[form]["model"]) == ("kserve-1", MODEL)
        for name in ("logits", "embedding"):
            reference = expected(PHOTOS[0], name)[None] if form == "file" else REFERENCE[name]
            np.testing.assert_allclose(said[form]["outputs"][name], reference, atol=1e-3)
    status, message = said["error"]
    assert status == 404
    assert "no model 'other'" in message
