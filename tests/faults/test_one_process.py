"""A service of one process whose engine breaks or hangs: it answers again, without anybody's help."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest

from service.grpc.door import ReservedPort
from tests.faults.faulty_service import FAULT_FILE, MODULE
from tests.faults.load import JPEG, PHOTO, Load, metric, until
from tests.integration.conftest import PATIENCE_S, Process, service_process
from tests.service import tiny_model
from tests.service.conftest import repository as repository

ALONE = ("--device", "cpu", "--threads", "1")
QUICK_TO_NOTICE = ("--hang-timeout-ms", "1000")

IS_READY = b"\x08\x01"
"""The field `ready` of the answer, true."""

Fault = Callable[[str], None]


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Have the next run of the model `break` the engine, or `hang`."""
    file, written = tmp_path / "fault", tmp_path / "written"
    monkeypatch.setenv(FAULT_FILE, str(file))

    def have(kind: str) -> None:
        written.write_text(kind)
        written.rename(file)  # whoever reads it reads it whole

    return have


def classify(process: Process, path: str = "/v1/classify") -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{process.port}{path}", content=PHOTO, headers=JPEG, timeout=PATIENCE_S)


def fails(process: Process) -> None:
    answer = classify(process)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) > 0


def answers_again(process: Process) -> None:
    until(lambda: httpx.get(f"http://127.0.0.1:{process.port}/health/ready", timeout=PATIENCE_S).status_code == 200)
    assert classify(process).json()["results"][0]["predictions"]


def test_an_engine_that_breaks_costs_the_images_that_it_had_and_is_loaded_again(repository: Path, fault: Fault) -> None:
    with service_process(repository, *ALONE, module=MODULE) as process:
        assert metric(process.port, "dat_restarts_total") == 0
        for breaks in (1, 2):
            assert classify(process).status_code == 200
            fault("break")
            fails(process)
            ended = process.wait_for("an engine has ended, and is loaded again")
            assert ended["model"] == tiny_model.NAME
            assert "Lethal" in ended["how"]
            assert ended["delay_s"] == 0.1 * breaks  # it has not lived for long
            process.wait_for("engine ready")
            answers_again(process)
            assert metric(process.port, "dat_restarts_total", process="engine") == breaks
            assert metric(process.port, "dat_engine_state", state="ready") == 1
            assert metric(process.port, "dat_admitted_images") == 0
        assert metric(process.port, "dat_requests_total", route="/v1/classify", status="200") == 4  # all the while
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0


def test_an_engine_that_breaks_leaves_other_models_alone(tmp_path: Path, fault: Fault) -> None:
    for name in ("a", "b"):
        tiny_model.write(tmp_path, name=name, explain=False)
    with service_process(tmp_path, *ALONE, "--model", "a,b", module=MODULE) as process:
        fault("break")
        fails(process)
        assert classify(process, "/v1/classify?model=b").status_code == 200
        process.wait_for("engine ready")
        answers_again(process)


def test_a_model_whose_files_are_gone_when_its_engine_breaks_is_served_again_when_they_are_back(
    tmp_path: Path, fault: Fault
) -> None:
    tiny_model.write(tmp_path, explain=False)
    with service_process(tmp_path, *ALONE, "--max-restart-delay-ms", "100", module=MODULE) as process:
        graph = tmp_path / tiny_model.NAME / str(tiny_model.VERSION) / "model.onnx"
        graph.rename(tmp_path / "away")
        fault("break")
        fails(process)
        for _ in range(3):
            process.wait_for("an engine has ended, and is loaded again")
        fails(process)
        (tmp_path / "away").rename(graph)
        process.wait_for("engine ready")
        answers_again(process)


def test_an_engine_that_hangs_has_the_process_begin_anew_with_its_id_and_its_port(
    repository: Path, fault: Fault
) -> None:
    with service_process(repository, *ALONE, *QUICK_TO_NOTICE, module=MODULE) as process:
        held = []
        for hangs in (1, 2):
            fault("hang")
            fails(process)
            anew = process.wait_for("the process begins anew")
            assert "hangs" in anew["how"]
            answers_again(process)  # refused at no time: `until` would raise
            process.wait_for("ready")
            assert process.popen.poll() is None
            assert metric(process.port, "dat_restarts_total", process="service") == hangs
            assert metric(process.port, "dat_admitted_images") == 0
            folder = Path(f"/proc/{process.popen.pid}")
            held.append([len(list((folder / part).iterdir())) for part in ("fd", "task")])
        assert held[0] == held[1]
        assert len({line["url"] for line in process.lines if line["message"] == "listening"}) == 1
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0


def test_grpc_is_there_again_at_its_port_when_the_process_has_begun_anew(repository: Path, fault: Fault) -> None:
    reserved = ReservedPort("127.0.0.1", 0)
    address, port = reserved.address, reserved.address.rpartition(":")[2]
    del reserved
    with service_process(repository, *ALONE, *QUICK_TO_NOTICE, "--grpc-port", port, module=MODULE) as process:
        with grpc.insecure_channel(address) as channel:
            ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
            assert ready(b"", timeout=PATIENCE_S) == IS_READY
            fault("hang")
            fails(process)
            process.wait_for("the process begins anew")
            answers_again(process)
            assert ready(b"", timeout=PATIENCE_S, wait_for_ready=True) == IS_READY
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0


def test_clients_of_an_engine_that_breaks_and_hangs_meet_503_and_no_refusal(repository: Path, fault: Fault) -> None:
    with (
        service_process(repository, *ALONE, *QUICK_TO_NOTICE, module=MODULE) as process,
        Load.on(process.port, clients=3) as load,
    ):
        for kind, line in (("break", "engine ready"), ("hang", "ready"), ("break", "engine ready")):
            load.wait_for_more()
            fault(kind)
            process.wait_for(line)
        load.wait_for_more()
    assert load.ends.keys() <= {"ok", "503 not_ready", "broken connection"}, load.ends
    # A connection may be closed just when its client uses it again, as at any end.
    assert load.ends["broken connection"] <= 3, load.ends


def test_a_signal_that_comes_while_an_engine_hangs_ends_the_process(repository: Path, fault: Fault) -> None:
    with service_process(repository, *ALONE, *QUICK_TO_NOTICE, module=MODULE) as process:
        fault("hang")
        with (
            httpx.Client() as client,
            client.stream(
                "POST", f"http://127.0.0.1:{process.port}/v1/classify", content=PHOTO, headers=JPEG, timeout=PATIENCE_S
            ) as answer,
        ):
            assert answer.status_code == 503
        os.kill(process.popen.pid, signal.SIGTERM)
        status = process.end()
        messages = [line["message"] for line in process.rest_of_log()]
        assert status in (0, -signal.SIGTERM), json.dumps(messages)  # after the drain, or just before the next life
