"""A service of several processes, of which some are killed or stopped: what its users see, and that it comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.faults.load import JPEG, PHOTO, Load, metric, pid_of, until, wait_for_exit, wait_for_process
from tests.integration.conftest import PATIENCE_S, Connection, service_process
from tests.service.conftest import repository as repository

SHAPE = ("--workers", "2", "--device", "cpu")
QUICK_TO_NOTICE = ("--heartbeat-timeout-ms", "2000", "--hang-timeout-ms", "2000")
HEAD = ("Content-Type: image/jpeg", f"Content-Length: {len(PHOTO)}", "Expect: 100-continue")


def classify(port: int, images: int = 1) -> httpx.Response:
    files = [("image", PHOTO)] * images
    return httpx.post(f"http://127.0.0.1:{port}/v1/classify", files=files, timeout=PATIENCE_S)


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memories_in(pid: int) -> int:
    """How many workers' memory a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:dat-serve-slots")


def metrics_directory_of(pid: int) -> Path:
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return Path(dict(variable.partition("=")[::2] for variable in variables)["PROMETHEUS_MULTIPROC_DIR"])


def in_flight(port: int, requests: int, pool: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Send requests to an engine that does not answer, and return when it has them all."""
    sent = [pool.submit(classify, port) for _ in range(requests)]
    until(lambda: metric(port, "dat_queued_images") == requests)
    return sent


def test_images_of_an_engine_that_is_killed_get_503_and_the_next_ones_an_answer(repository: Path) -> None:
    with service_process(repository, *SHAPE) as process, ThreadPoolExecutor(6) as pool:
        engine = pid_of(process, "engine-0")
        os.kill(engine, signal.SIGSTOP)
        sent = in_flight(process.port, 6, pool)
        os.kill(engine, signal.SIGKILL)
        answers = [future.result() for future in sent]
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "not_ready")] * 6
        wait_for_process(process, "engine-0")
        until(lambda: httpx.get(f"http://127.0.0.1:{process.port}/health/ready").status_code == 200)
        until(lambda: classify(process.port).status_code == 200)
        assert metric(process.port, "dat_admitted_images") == 0


def test_engine_that_is_killed_again_and_again_under_load_costs_503_and_nothing_else(repository: Path) -> None:
    options = (*SHAPE, "--max-restart-delay-ms", "100")
    with service_process(repository, *options) as process, Load.on(process.port) as load:
        for _ in range(3):
            load.wait_for_more()
            os.kill(pid_of(process, "engine-0"), signal.SIGKILL)
            wait_for_process(process, "engine-0")
        load.wait_for_more()
    assert load.ends.keys() <= {"ok", "503 not_ready"}, load.ends


def test_worker_that_is_killed_under_load_comes_back_and_loses_no_slot(repository: Path) -> None:
    options = (*SHAPE, "--max-queued-images", "16", "--max-images", "8", "--max-restart-delay-ms", "100")
    with service_process(repository, *options) as process:
        supervisor, engine = process.popen.pid, pid_of(process, "engine-0")
        with Load.on(process.port) as load:
            load.wait_for_more()
            before = descriptors_of(supervisor), descriptors_of(engine)
            for _ in range(3):
                load.wait_for_more()
                os.kill(pid_of(process, "worker-1"), signal.SIGKILL)
                load.wait_for_more()
                wait_for_process(process, "worker-1")
            load.wait_for_more()
        assert load.ends.keys() <= {"ok", "broken connection"}, load.ends
        assert (descriptors_of(supervisor), descriptors_of(engine)) == before
        assert (memories_in(supervisor), memories_in(engine)) == (0, 2)
        until(lambda: metric(process.port, "dat_admitted_images") == 0)
        # All that one worker admits, again and again: whichever worker has lost a slot would refuse it.
        assert {classify(process.port, 8).status_code for _ in range(20)} == {200}
        assert metric(process.port, "dat_requests_in_flight") == 1


@pytest.mark.parametrize("name", ["engine-0", "worker-0"])
def test_process_that_hangs_is_replaced(repository: Path, name: str) -> None:
    with service_process(repository, *SHAPE, *QUICK_TO_NOTICE) as process:
        stopped = os.pidfd_open(pid_of(process, name))
        signal.pidfd_send_signal(stopped, signal.SIGSTOP)
        ended = process.wait_for("a process has ended, and is started again")
        assert (ended["name"], ended["how"]) == (name, "did not answer for 2 s")
        wait_for_exit(stopped)
        os.close(stopped)
        wait_for_process(process, name)
        until(lambda: classify(process.port).status_code == 200)
        until(lambda: metric(process.port, "dat_restarts_total", process=name) == 1)
        assert metric(process.port, "dat_restarts_total") == 1


def test_engine_that_is_stopped_while_it_loads_is_replaced(repository: Path) -> None:
    with service_process(repository, *SHAPE, *QUICK_TO_NOTICE) as process:
        os.kill(pid_of(process, "engine-0"), signal.SIGKILL)
        process.wait_for("a process has ended, and is started again")
        loading = process.wait_for("started")
        assert loading["name"] == "engine-0"
        os.kill(loading["pid"], signal.SIGSTOP)
        ended = process.wait_for("a process has ended, and is started again")
        assert (ended["name"], ended["how"]) == ("engine-0", "did not answer for 2 s")
        wait_for_process(process, "engine-0")
        until(lambda: classify(process.port).status_code == 200)


def test_engine_that_hangs_holds_up_only_its_own_images(repository: Path) -> None:
    with (
        service_process(repository, "--devices", "cpu,cpu") as process,
        ThreadPoolExecutor(1) as pool,
    ):
        engine = pid_of(process, "engine-0")
        os.kill(engine, signal.SIGSTOP)
        (waiting,) = in_flight(process.port, 1, pool)
        assert {classify(process.port).status_code for _ in range(5)} == {200}
        assert not waiting.done()
        os.kill(engine, signal.SIGCONT)
        assert waiting.result().status_code == 200


def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new(repository: Path) -> None:
    with service_process(repository, *SHAPE) as process, Connection(process.port) as connection:
        connection.head("/v1/classify", *HEAD)
        assert connection.response_head()[0] == 100
        process.popen.send_signal(signal.SIGTERM)
        # One worker waits for the request, and the other, which has nothing to do, ends.
        process.wait_for_all(
            "Waiting for connections to close. (CTRL+C to force quit)", "Application shutdown complete."
        )
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE_S)
        connection.send(PHOTO)
        assert connection.response()[0] == 200
        assert process.end() == 0


def test_sigterm_under_load_ends_with_status_0(repository: Path) -> None:
    with service_process(repository, *SHAPE) as process, Load.on(process.port) as load:
        load.wait_for_more()
        directory = metrics_directory_of(pid_of(process, "worker-0"))
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0
        assert not directory.exists()
        load.wait_for_more("broken connection", 1)
    assert load.ends.keys() <= {"ok", "broken connection"}, load.ends


def test_a_second_signal_ends_the_service_at_once(repository: Path) -> None:
    with service_process(repository, *SHAPE) as process, Connection(process.port) as connection:
        children = [os.pidfd_open(pid_of(process, name)) for name in ("engine-0", "worker-0", "worker-1")]
        directory = metrics_directory_of(pid_of(process, "worker-0"))
        assert list(directory.iterdir())
        connection.head("/v1/classify", *HEAD)
        assert connection.response_head()[0] == 100
        process.popen.send_signal(signal.SIGTERM)
        process.wait_for("Waiting for connections to close. (CTRL+C to force quit)")
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 128 + signal.SIGTERM
        assert not directory.exists()
        for child in children:
            wait_for_exit(child)
            os.close(child)


def test_nothing_outlives_a_supervisor_that_is_killed(repository: Path) -> None:
    with service_process(repository, *SHAPE) as process, ExitStack() as stack:
        children = [os.pidfd_open(pid_of(process, name)) for name in ("engine-0", "worker-0", "worker-1")]
        for child in children:
            stack.callback(kill_if_alive, child)
        signal.pidfd_send_signal(children[0], signal.SIGSTOP)
        process.popen.kill()
        process.end()
        for child in children:
            wait_for_exit(child)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE_S)


def kill_if_alive(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_every_worker_shows_the_sums_of_all(repository: Path) -> None:
    with service_process(repository, *SHAPE) as process, Load.on(process.port, clients=8) as load:
        load.wait_for_more(count=100)
        load.stop()
        answered = load.ends["ok"]
        # A request is counted when its answer has been sent, which is when its client may have it already.
        until(lambda: metric(process.port, "dat_requests_in_flight") == 1)
        for _ in range(10):  # each over a connection of its own, so that both workers are asked
            assert metric(process.port, "dat_requests_total", route="/v1/classify", status="200") == answered
            assert metric(process.port, "dat_stage_duration_seconds_count", stage="inference") == answered
            assert metric(process.port, "dat_engine_state", state="ready") == 1
        for name in ("engine-0", "worker-0", "worker-1"):
            assert metric(process.port, "process_resident_memory_bytes", process=name) > 0
        os.kill(pid_of(process, "worker-0"), signal.SIGKILL)
        wait_for_process(process, "worker-0")
        assert metric(process.port, "dat_requests_total", route="/v1/classify", status="200") == answered


def test_all_outputs_are_the_same_in_both_shapes(repository: Path) -> None:
    outputs = "&".join(f"outputs={name}" for name in ("logits", "embedding", "stage1", "stage2", "stage3", "stage4"))
    archives = []
    for shape in (SHAPE, ("--device", "cpu")):
        with service_process(repository, *shape) as process:
            answer = httpx.post(
                f"http://127.0.0.1:{process.port}/v1/features?{outputs}",
                content=PHOTO, headers=JPEG | {"Accept": "application/x-npz"}, timeout=PATIENCE_S,
            )  # fmt: skip
            assert answer.status_code == 200
            archives.append(answer.content)
    assert archives[0] == archives[1]
