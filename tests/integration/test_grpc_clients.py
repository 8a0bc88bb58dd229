"""The Open Inference Protocol as Triton's and KServe's own clients speak it over gRPC to a live server."""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from service.model.directory import ModelDirectory, open_model
from tests.integration.conftest import PATIENCE_S, ROOT, Process, service_process, service_thread
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
def process(request: pytest.FixtureRequest, repository: Path) -> Iterator[Process]:
    options = ("--workers", request.param, "--grpc-port", "0", "--max-body-bytes", "2000000")
    with service_process(repository, *options) as running:
        yield running


@pytest.fixture
def client(process: Process) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(process.grpc_address) as client:
        yield client


def image_input(values: NDArray[Any], datatype: str = "UINT8") -> triton.InferInput:
    tensor = triton.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def files_input(*files: bytes) -> triton.InferInput:
    return image_input(np.array(files, np.object_), "BYTES")


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
    assert {"binary_tensor_data", "statistics"} <= set(client.get_server_metadata().extensions)
    metadata = client.get_model_metadata(MODEL, as_json=True)
    assert metadata == client.get_model_metadata(MODEL, VERSION, as_json=True)
    shape = ["-1", str(SIZE), str(SIZE), "3"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": shape}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", str(tiny_model.CLASSES)]}]
    config = client.get_model_config(MODEL, VERSION).config
    assert config.max_batch_size == 64
    assert config.input[0].format == config.input[0].FORMAT_NHWC
    assert list(config.input[0].dims) == [SIZE, SIZE, 3]
    assert config.version_policy.specific.versions == [int(VERSION)]
    assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 30_000_000
    described = client.get_model_metadata(MODEL, headers={"x-image-datatype": "BYTES"})
    assert (described.inputs[0].datatype, list(described.inputs[0].shape)) == ("BYTES", [-1, 1])
    index = client.get_model_repository_index(as_json=True)
    assert index == {"models": [{"name": MODEL, "version": VERSION, "state": "READY"}]}


def test_every_output_and_the_requests_id(client: triton.InferenceServerClient) -> None:
    result = client.infer(
        MODEL, [image_input(BATCH)], model_version=VERSION, outputs=asked(*OUTPUTS), request_id="request 7"
    )
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("request 7", MODEL, VERSION)
    assert [output.name for output in response.outputs] == list(OUTPUTS)
    assert_like(result, OUTPUTS)


@pytest.mark.parametrize(("datatype", "name"), [(np.float32, "FP32"), (np.float16, "FP16")])
def test_whole_pixels_of_other_types_get_the_same_answer(
    client: triton.InferenceServerClient, datatype: type, name: str
) -> None:
    assert_like(client.infer(MODEL, [image_input(BATCH.astype(datatype), name)]), ("logits",))


def test_image_files_are_decoded_as_everywhere(client: triton.InferenceServerClient) -> None:
    result = client.infer(MODEL, [files_input(*PHOTOS)], outputs=asked("logits", "embedding"))
    for name in ("logits", "embedding"):
        np.testing.assert_allclose(result.as_numpy(name), of_photos(name), atol=1e-3)


def test_classification_names_the_highest_values(client: triton.InferenceServerClient) -> None:
    answers = client.infer(MODEL, [image_input(BATCH)], outputs=asked("logits", class_count=2)).as_numpy("logits")
    for row, logits in zip(answers, REFERENCE["logits"], strict=True):
        best = np.argsort(-logits)[:2]
        assert [text.decode().split(":")[1:] for text in row] == [
            [str(index), tiny_model.LABELS[index]] for index in best
        ]


def typed(datatype: str, shape: list[int], **contents: Any) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(
        name="image", datatype=datatype, shape=shape, contents=service_pb2.InferTensorContents(**contents)
    )
    return request


@pytest.mark.parametrize(
    ("datatype", "contents", "reference"),
    [
        ("UINT8", {"uint_contents": BATCH.ravel().tolist()}, REFERENCE["logits"]),
        ("FP32", {"fp32_contents": BATCH.astype(np.float32).ravel().tolist()}, REFERENCE["logits"]),
        ("BYTES", {"bytes_contents": PHOTOS}, of_photos("logits")),
    ],
)
def test_values_in_the_fields_of_their_type(
    process: Process, datatype: str, contents: dict[str, Any], reference: NDArray[np.float32]
) -> None:
    """As clients send them that are made from the .proto alone; and answered so where they ask for it."""
    request = typed(datatype, [2] if datatype == "BYTES" else list(BATCH.shape), **contents)
    request.parameters["binary_data_output"].bool_param = False
    with grpc.insecure_channel(process.grpc_address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )
        response = call(request, timeout=PATIENCE_S)
        assert not response.raw_output_contents
        logits = np.array(response.outputs[0].contents.fp32_contents).reshape(list(response.outputs[0].shape))
        np.testing.assert_allclose(logits, reference, atol=1e-3)
        output = request.outputs.add(name="logits")
        output.parameters["classification"].int64_param = 1
        text = call(request, timeout=PATIENCE_S).outputs[0].contents.bytes_contents[0].decode()
        assert int(text.split(":")[1]) == int(reference[0].argmax())


def test_requests_in_flight_together_keep_their_answers_apart(client: triton.InferenceServerClient) -> None:
    batches = [np.stack([pixels(SIZE, SIZE, seed=seed)] * (1 + seed % 3)) for seed in range(12)]
    ended: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for number, batch in enumerate(batches):
        client.async_infer(
            MODEL,
            [image_input(batch)],
            lambda result, error, number=number: ended.put((number, result, error)),  # type: ignore[misc]
            priority=1 + number % 2,
        )
    for _ in batches:
        number, result, error = ended.get(timeout=PATIENCE_S)
        assert error is None
        assert_like(result, ("logits",), tiny_model.reference(batches[number]))


def test_stream_answers_in_order_and_goes_on_after_an_error(client: triton.InferenceServerClient) -> None:
    answered: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answered.put((result, error)))
    for number in range(40):  # more than are worked on at a time
        name = "nobody" if number == 7 else MODEL
        client.async_stream_infer(name, [image_input(BATCH)], request_id=str(number))
    for number in range(40):
        result, error = answered.get(timeout=PATIENCE_S)
        if number == 7:
            assert "no model 'nobody'" in str(error)
        else:
            assert result.get_response().id == str(number)
            assert_like(result, ("logits",))
    client.stop_stream()


async def test_asynchronous_client_does_the_same(process: Process) -> None:
    async with triton_aio.InferenceServerClient(process.grpc_address) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata(MODEL)).name == MODEL
        for result in await asyncio.gather(
            *(client.infer(MODEL, [image_input(BATCH)], outputs=asked(*OUTPUTS)) for _ in range(4))
        ):
            assert_like(result, OUTPUTS)

        async def requests() -> Any:
            for number in range(3):
                yield {"model_name": MODEL, "inputs": [image_input(BATCH)], "request_id": str(number)}

        answers = [each async for each in client.stream_infer(requests())]
        assert [result.get_response().id for result, _ in answers] == ["0", "1", "2"]


def test_statistics_and_metrics_count_calls_and_those_of_streams(
    client: triton.InferenceServerClient, process: Process
) -> None:
    before = client.get_inference_statistics(MODEL, VERSION).model_stats[0]
    for _ in range(3):
        client.infer(MODEL, [image_input(BATCH)])
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, [image_input(BATCH)], outputs=asked("nothing"))
    after = client.get_inference_statistics().model_stats[0]
    assert after.inference_count - before.inference_count == 9
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.batch_stats[0].compute_infer.count > 0
    metrics = httpx.get(f"http://127.0.0.1:{process.port}/metrics").text
    line = next(
        each
        for each in metrics.splitlines()
        if each.startswith("dat_requests_total")
        and 'route="/inference.GRPCInferenceService/ModelInfer"' in each
        and 'code="ok"' in each
    )
    assert 'status="200"' in line
    assert float(line.split()[-1]) >= 3


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ({"model_name": "nobody"}, "NOT_FOUND", "no model 'nobody'"),
        ({"model_version": "9"}, "NOT_FOUND", "9"),
        ({"outputs": asked("nothing")}, "INVALID_ARGUMENT", "no 'nothing'"),
        ({"inputs": [image_input(BATCH[:, :9])]}, "INVALID_ARGUMENT", "shape"),
        ({"inputs": [files_input(b"no image")]}, "INVALID_ARGUMENT", "Image 0"),
        ({"inputs": [image_input(BATCH + np.float32(0.5), "FP32")]}, "INVALID_ARGUMENT", "whole numbers"),
        ({"sequence_id": 3}, "INVALID_ARGUMENT", "sequence_id"),
        ({"inputs": [image_input(np.repeat(BATCH, 30, axis=0))]}, "INVALID_ARGUMENT", "more than 64 images"),
        ({"inputs": [files_input(bytes(2_000_001))]}, "RESOURCE_EXHAUSTED", "larger than max"),
        ({"timeout": 1}, "DEADLINE_EXCEEDED", "deadline"),
    ],
)
def test_errors_have_grpcs_statuses(
    client: triton.InferenceServerClient, call: dict[str, Any], status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as raised:
        client.infer(**{"model_name": MODEL, "inputs": [image_input(BATCH)], **call})
    assert raised.value.status() == f"StatusCode.{status}"


def test_models_are_loaded_and_unloaded_where_that_is_allowed(
    client: triton.InferenceServerClient, model: ModelDirectory, tmp_path: Path
) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="--model-control is off") as raised:
            change(MODEL)
        assert raised.value.status() == "StatusCode.PERMISSION_DENIED"
    other = open_model(tiny_model.write(tmp_path, name="other", version=1, size=2 * SIZE, seed=8))
    control = FakeControl()
    with (
        service_thread(model, others=[other], control=control, grpc_port=0) as running,
        triton.InferenceServerClient(running.grpc_address) as own,
    ):
        own.unload_model("other", unload_dependents=True)
        assert not own.is_model_ready("other")
        with pytest.raises(InferenceServerException, match="unloaded"):
            own.infer("other", [image_input(BATCH)])
        own.load_model("other")
        assert own.is_model_ready("other")
        control.failures["other"] = "other version 2 does not match its sha256"
        for call, status, message in (
            ({"model_name": "other"}, "FAILED_PRECONDITION", "does not match its sha256"),
            ({"model_name": "none"}, "NOT_FOUND", "no model 'none'"),
            ({"model_name": "other", "config": "{}"}, "INVALID_ARGUMENT", "as it was exported"),
        ):
            with pytest.raises(InferenceServerException, match=message) as raised:
                own.load_model(**call)
            assert raised.value.status() == f"StatusCode.{status}"


def test_kserves_client(process: Process, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", BATCH)
    (tmp_path / "photo").write_bytes(PHOTOS[0])
    script = Path(__file__).with_name("kserve_grpc_client.py")
    arguments = [process.grpc_address, MODEL, str(tmp_path / "pixels.npy"), str(tmp_path / "photo")]
    ended = subprocess.run(
        [str(KSERVE), str(script), *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert (said["live"], said["ready"], said["model_ready"], said["other_ready"]) == (True, True, True, False)
    for form in ("raw", "typed"):
        np.testing.assert_allclose(said[form], REFERENCE["logits"], atol=1e-3)
    np.testing.assert_allclose(said["file"], [expected(PHOTOS[0], "logits")], atol=1e-3)
    assert said["error"][0] == "NOT_FOUND"
