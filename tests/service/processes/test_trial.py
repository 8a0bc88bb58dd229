"""Candidates that are tried in a process of their own: what can be served passes, and nothing else hurts anybody."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine.control import ControlSocket
from service.errors import StartupError
from service.model.directory import open_model
from service.model.manifest import MODEL_FILE
from service.processes import trial
from service.processes.trial import try_candidate
from service.serving.registry import Candidate
from service.settings import Settings
from tests.service import tiny_model


def candidate_of(directory: Path, **settings: object) -> Candidate:
    return Candidate(open_model(directory), Settings(device="cpu", batch_buckets=(1, 2), **settings))  # type: ignore[arg-type]


async def test_a_version_that_can_be_served_passes(tmp_path: Path) -> None:
    await try_candidate(candidate_of(tiny_model.write(tmp_path)))


def endless(directory: Path) -> None:
    """Have the classes be computed for ever."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Identity", ["was"], ["is"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("was", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("is", TensorProto.FLOAT, None),
        ],
    )
    graph = tiny_model.graph()
    for node in graph.graph.node:
        if "logits" in node.output:
            node.output[:] = ["first"]
    graph.graph.node.append(helper.make_node("Loop", ["", "yes", "first"], ["logits"], body=body))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    (directory / MODEL_FILE).write_bytes(graph.SerializeToString())
    tiny_model.write_manifest(directory)


async def test_a_version_whose_run_never_ends_is_ended(tmp_path: Path) -> None:
    directory = tiny_model.write(tmp_path, explain=False)
    endless(directory)
    with pytest.raises(StartupError, match=r"A single run of it lasted more than 1 s\."):
        await try_candidate(candidate_of(directory, hang_timeout_ms=1000))


async def test_a_device_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    candidate = Candidate(open_model(tiny_model.write(tmp_path)), Settings(device="cuda:7"))
    with pytest.raises(StartupError, match="cuda:7"):
        await try_candidate(candidate)


def killed(control: ControlSocket, descriptors: Sequence[int], candidate: Candidate) -> int:
    """Be ended as the kernel ends a process for which there is no memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def crashing(control: ControlSocket, descriptors: Sequence[int], candidate: Candidate) -> int:
    """Crash, as a broken kernel of a runtime does."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def leaving(control: ControlSocket, descriptors: Sequence[int], candidate: Candidate) -> int:
    """End without a word."""
    sys.exit(3)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (killed, r"was killed, as happens where memory does not suffice\."),
        (crashing, r"was ended by signal 11\."),
        (leaving, r"ended with status 3\."),
    ],
)
async def test_a_trial_that_brings_its_process_down_says_how(
    end: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "run_trial", end)
    with pytest.raises(StartupError, match=said):
        await try_candidate(candidate_of(tiny_model.write(tmp_path)))


def test_memory_that_can_be_had_is_known() -> None:
    available = trial._available_bytes()
    assert 0 < available <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
