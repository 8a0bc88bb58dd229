"""Versions of a model that come, go and replace each other while the service is under load."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import helper, numpy_helper

from service.model.manifest import MODEL_FILE
from tests.faults.load import JPEG, PHOTO, metric, pid_of, until, wait_for_process
from tests.integration.conftest import PATIENCE_S, Process, service_process
from tests.service import tiny_model

NAME = tiny_model.NAME
CONTROLLED = ("--model-control", "--device", "cpu", "--batch-buckets", "1,4")


def shape_of(workers: int) -> tuple[str, ...]:
    return (*CONTROLLED, "--workers", str(workers))


def url(process: Process, path: str) -> str:
    return f"http://127.0.0.1:{process.port}{path}"


def write(repository: Path, version: int) -> Path:
    """Put a version in place whose answers no other gives."""
    return tiny_model.write(repository, version=version, seed=version, explain=False)


def load(process: Process, name: str = NAME) -> httpx.Response:
    return httpx.post(url(process, f"/v2/repository/models/{name}/load"), timeout=PATIENCE_S)


def unload(process: Process, name: str = NAME) -> httpx.Response:
    return httpx.post(url(process, f"/v2/repository/models/{name}/unload"), timeout=PATIENCE_S)


def states(process: Process) -> dict[int, tuple[str, str]]:
    """The state of each version, and why."""
    models = httpx.get(url(process, "/v1/models"), timeout=PATIENCE_S).json()["models"]
    return {each["version"]: (each["state"], each["reason"]) for each in models if each["name"] == NAME}


class Asking:
    """Clients that ask all the time, and what they were answered: by which version, in which words."""

    def __init__(self, port: int, clients: int) -> None:
        self.answers: Counter[tuple[int, str]] = Counter()
        self.failures: Counter[str] = Counter()
        self._url = f"http://127.0.0.1:{port}/v1/classify"
        self._changed = threading.Condition()
        self._stopping = False
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self._stopping:
                try:
                    answer = client.post(self._url, content=PHOTO, headers=JPEG)
                except httpx.TransportError as error:
                    self._count(self.failures, type(error).__name__)
                    continue
                said = answer.json()
                if answer.status_code == 200:
                    predictions = [(each["class_id"], each["score"]) for each in said["results"][0]["predictions"]]
                    self._count(self.answers, (said["model"]["version"], str(predictions)))
                else:
                    self._count(self.failures, f"{answer.status_code} {said['code']}")

    def _count(self, counter: Counter[str] | Counter[tuple[int, str]], end: str | tuple[int, str]) -> None:
        with self._changed:
            counter[end] += 1  # type: ignore[index]
            self._changed.notify_all()

    def wait_for_more(self, count: int = 12) -> None:
        with self._changed:
            enough = self.answers.total() + count
            assert self._changed.wait_for(lambda: self.answers.total() >= enough, PATIENCE_S), self.failures

    def stop(self) -> None:
        self._stopping = True
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a request never ended"

    def check_each_version_gave_one_answer(self, versions: int) -> None:
        """All were sent the same photo: a version that answers in two ways was not wholly that version."""
        by_version = Counter(version for version, _ in self.answers)
        assert set(by_version.values()) == {1}, self.answers
        assert len(by_version) == versions
        assert len({said for _, said in self.answers}) == versions


@contextmanager
def asking(process: Process, clients: int = 6) -> Iterator[Asking]:
    asked = Asking(process.port, clients)
    for thread in asked.threads:
        thread.start()
    try:
        asked.wait_for_more()
        yield asked
    finally:
        asked.stop()


def processes_of(process: Process) -> dict[str, int]:
    """The service's own processes, by name."""
    names = [str(line["name"]) for line in process.lines if line["message"] == "started"]
    return {"supervisor": process.popen.pid} | {name: pid_of(process, name) for name in names}


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def settled(process: Process) -> dict[str, int]:
    """The descriptors of each process, when connections that were closed are gone."""
    last: dict[str, int] = {}
    while last != (last := {name: descriptors(pid) for name, pid in processes_of(process).items()}):
        time.sleep(0.2)
    return last


def private_kib(pid: int) -> int:
    """Memory that is the process's own, and given back when it ends."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(each) for each in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("workers", "replacements"),
    [
        (1, 5),
        (2, 5),
        pytest.param(1, 20, marks=pytest.mark.full),
        pytest.param(2, 20, marks=pytest.mark.full),
    ],
)
def test_versions_replaced_under_load_lose_and_refuse_nothing_and_leave_nothing_behind(
    workers: int, replacements: int, tmp_path: Path
) -> None:
    write(tmp_path, 1)
    newest, early = replacements + 2, replacements // 4 + 3
    with service_process(tmp_path, *shape_of(workers)) as process:
        held: dict[str, list[int]] = {}
        write(tmp_path, 2)
        assert load(process).status_code == 200  # the first one opens the files in which such things are counted
        before = settled(process)
        with asking(process, clients=3) as asked:
            for version in range(3, newest + 1):
                write(tmp_path, version)
                assert load(process).status_code == 200
                asked.wait_for_more()
                if version in (early, newest):
                    for name, pid in processes_of(process).items():
                        held.setdefault(name, []).append(private_kib(pid))
        assert asked.failures == Counter()
        asked.check_each_version_gave_one_answer(newest - 1)
        assert states(process) == dict.fromkeys(range(1, newest), ("unloaded", "")) | {newest: ("ready", "")}
        until(lambda: metric(process.port, "dat_admitted_images") == 0)
        for name, (then, now) in held.items():
            assert now - then < 16 * 1024, f"{name} grew from {then} to {now} KiB"
        assert settled(process) == before


def truncated(directory: Path) -> None:
    with (directory / MODEL_FILE).open("r+b") as file:
        file.truncate(100)


def tampered(directory: Path) -> None:
    data = bytearray((directory / MODEL_FILE).read_bytes())
    data[-10] ^= 1
    (directory / MODEL_FILE).write_bytes(data)


def no_graph(directory: Path) -> None:
    (directory / MODEL_FILE).write_bytes(b"not a graph")
    tiny_model.write_manifest(directory, version=int(directory.name))


def lying(directory: Path) -> None:
    """Say that there are seven classes, and give six."""
    graph = tiny_model.graph()
    (weights,) = (each for each in graph.graph.initializer if each.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(np.zeros((3, tiny_model.CLASSES - 1), np.float32), "weights"))
    for output in graph.graph.output:
        if output.name == "logits":
            output.type.tensor_type.ClearField("shape")
    (directory / MODEL_FILE).write_bytes(graph.SerializeToString())
    tiny_model.write_manifest(directory, version=int(directory.name))


def exhausting(directory: Path) -> None:
    """Ask for a hundred terabytes in every run."""
    graph = tiny_model.graph()
    huge = [
        helper.make_node("ConstantOfShape", ["much"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["nothing"], keepdims=0),
        helper.make_node("MatMul", ["embedding", "weights"], ["plain"]),
        helper.make_node("Add", ["plain", "nothing"], ["logits"]),
    ]
    kept = [node for node in graph.graph.node if "logits" not in node.output]
    del graph.graph.node[:]
    graph.graph.node.extend([*kept, *huge])
    graph.graph.initializer.append(numpy_helper.from_array(np.array([25 * 10**12], np.int64), "much"))
    (directory / MODEL_FILE).write_bytes(graph.SerializeToString())
    tiny_model.write_manifest(directory, version=int(directory.name))


@pytest.mark.parametrize("workers", [None, 2], ids=["one process", "several"])
def test_a_version_that_cannot_be_served_leaves_the_old_one_serving_and_says_why(
    workers: int | None, tmp_path: Path
) -> None:
    broken: list[tuple[Callable[[Path], None], str]] = [
        (truncated, "has 100 bytes; its manifest says"),
        (tampered, "does not match its manifest"),
        (no_graph, "cannot be loaded as a model"),
        (lying, "logits is (4, 6) where (4, 7) was promised"),
        (exhausting, "failed to run a batch of 4 while warming up"),
    ]
    write(tmp_path, 1)
    options = CONTROLLED if workers is None else shape_of(workers)
    with service_process(tmp_path, *options) as process, asking(process, clients=2) as asked:
        for version, (spoil, reason) in enumerate(broken, start=2):
            spoil(write(tmp_path, version))
            answer = load(process)
            assert (answer.status_code, reason in answer.json()["error"]) == (422, True), answer.text
            state, why = states(process)[version]
            assert state == "failed"
            assert reason in why
            index = httpx.post(url(process, "/v2/repository/index"), timeout=PATIENCE_S).json()
            (entry,) = (each for each in index if each["version"] == str(version))
            assert entry["state"] == "UNAVAILABLE"
            assert reason in entry["reason"]
            assert metric(process.port, "dat_model_state", version=str(version), state="failed") == 1
            assert httpx.get(url(process, "/health/ready"), timeout=PATIENCE_S).status_code == 200
            asked.wait_for_more()
        assert states(process)[1] == ("ready", "")
        assert metric(process.port, "dat_model_loads_total", model=NAME, outcome="failed") == len(broken)
        write(tmp_path, 9)
        assert load(process).status_code == 200
        asked.wait_for_more()
        assert states(process)[9] == ("ready", "")
    assert asked.failures == Counter()
    asked.check_each_version_gave_one_answer(2)


def test_files_of_the_served_version_that_changed_replace_it_and_broken_ones_do_not(tmp_path: Path) -> None:
    directory = write(tmp_path, 1)
    with service_process(tmp_path, *CONTROLLED) as process, asking(process, clients=2) as asked:
        whole = (directory / MODEL_FILE).read_bytes()
        truncated(directory)
        assert load(process).status_code == 422
        state, reason = states(process)[1]
        assert (state, "has 100 bytes" in reason) == ("ready", True)
        (directory / MODEL_FILE).write_bytes(whole)
        assert load(process).status_code == 200
        assert states(process)[1] == ("ready", "")
        (directory / MODEL_FILE).write_bytes(tiny_model.graph(seed=5).SerializeToString())
        tiny_model.write_manifest(directory, version=1)
        assert load(process).status_code == 200
        asked.wait_for_more()
    assert asked.failures == Counter()
    assert sorted(version for version, _ in asked.answers) == [1, 1]


def test_a_model_that_is_unloaded_is_gone_and_comes_back(tmp_path: Path) -> None:
    write(tmp_path, 1)
    tiny_model.write(tmp_path, name="other", version=4, size=2 * tiny_model.SIZE, explain=False)
    with service_process(tmp_path, *shape_of(2), "--model", "all") as process:

        def classify(**query: str) -> httpx.Response:
            address = url(process, "/v1/classify")
            return httpx.post(address, content=PHOTO, headers=JPEG, params=query, timeout=PATIENCE_S)

        assert classify(model=NAME).json()["model"] == {"name": NAME, "version": 1}
        assert unload(process).status_code == 200
        for _ in range(4):  # whichever worker answers
            assert (classify(model=NAME).status_code, classify(model="other").status_code) == (404, 200)
        assert httpx.get(url(process, f"/v2/models/{NAME}/ready"), timeout=PATIENCE_S).status_code == 503
        assert httpx.get(url(process, "/v2/models/other/ready"), timeout=PATIENCE_S).status_code == 200
        assert unload(process, "nothing").status_code == 404
        assert load(process, "nothing").status_code == 404
        assert load(process).status_code == 200
        assert classify(model=f"{NAME}:1").status_code == 200


@pytest.mark.parametrize("victim", ["engine-0", "worker-1"])
def test_a_process_that_is_killed_while_a_version_is_replaced_changes_nothing_of_the_end(
    victim: str, tmp_path: Path
) -> None:
    write(tmp_path, 1)
    with service_process(tmp_path, *shape_of(2), "--max-restart-delay-ms", "100") as process:
        with asking(process) as asked:
            for version in range(2, 4):
                write(tmp_path, version)
                answers: list[httpx.Response | httpx.TransportError] = []
                loading = threading.Thread(target=lambda into=answers: into.append(_load_again(process)))
                loading.start()
                until(lambda number=version: number in states(process))  # type: ignore[misc]
                os.kill(pid_of(process, victim), signal.SIGKILL)
                wait_for_process(process, victim)
                loading.join(PATIENCE_S)
                assert not loading.is_alive()
                asked.wait_for_more()
                assert states(process)[version] == ("ready", "")
        # Who is in the hands of what was killed is told so, as at any other time.
        lost = {"503 not_ready"} if victim == "engine-0" else {"RemoteProtocolError", "ReadError", "ConnectError"}
        assert asked.failures.keys() <= lost, asked.failures
        asked.check_each_version_gave_one_answer(len({version for version, _ in asked.answers}))
        until(lambda: metric(process.port, "dat_admitted_images") == 0)


def _load_again(process: Process) -> httpx.Response | httpx.TransportError:
    """Load, and once more where the worker that was asked has been killed meanwhile."""
    try:
        return load(process)
    except httpx.TransportError:
        return load(process)
